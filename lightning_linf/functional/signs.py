"""Random signs from a hash of their index: equal on every device and in every version of torch."""

from functools import lru_cache

import torch
from torch import Tensor

from lightning_linf.functional.random import derive_seed

_WORD = 0xFFFFFFFF
_FEW = 1 << 12
_CHUNK = 1 << 16  # words hashed at a time on CPUs: temporary numbers stay in the cache


def sign_words(num_words: int, *, seed: int, stream: int, device: torch.device) -> Tensor:
    """Draw 32 random signs at a time, as the bits of words.

    Args:
        num_words: How many words.
        seed: Any integer.
        stream: Words of different streams are unrelated.
        device: Where to compute them; the words are the same everywhere.

    Returns:
        Words, int32, shape (num_words,), not to be changed. Any of their bits is an independent
        fair coin.

    Source:
        Keyed forms of the counter-based integer hash of C. Wellons, Prospecting for hash functions
        (2018), with the multipliers found by its user TheIronBorn. int64 numbers below 2^32 times
        multipliers below 2^31 never overflow. Cost: 14 operations on ``num_words`` integers.
    """
    if num_words <= _FEW:
        return _few_sign_words(num_words, seed, stream, device)
    return _hash(num_words, seed, stream, device)


@lru_cache(maxsize=1024)  # at most 16 MiB: for small tensors, launching the hash costs the most
def _few_sign_words(num_words: int, seed: int, stream: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept, they may be used in or out of inference mode
        return _hash(num_words, seed, stream, device)


def _hash(num_words: int, seed: int, stream: int, device: torch.device) -> Tensor:
    key = derive_seed("signs", seed, stream)
    words = torch.empty(num_words, dtype=torch.int32, device=device)
    size = _CHUNK if device.type == "cpu" else num_words
    for first in range(0, num_words, size):
        part = words[first : first + size]
        x = torch.arange(first, first + len(part), dtype=torch.int64, device=device)
        x.add_(key & _WORD).bitwise_and_(_WORD)
        x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD).bitwise_and_(_WORD)
        x.bitwise_xor_(key >> 31)  # 32 other bits: without them keys would only shift the sequence
        x.bitwise_xor_(x >> 15).mul_(0x735A2D97).bitwise_and_(_WORD)
        x.bitwise_xor_(x >> 15)
        part.copy_(x.sub_(1 << 31))  # into the range of int32
    return words
