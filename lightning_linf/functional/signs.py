"""Random signs from a hash of their number: equal on every device and in every version of torch."""

from functools import lru_cache

import torch
from torch import Tensor

from lightning_linf.functional.random import derive_seed

_WORD = 0xFFFFFFFF  # the low 32 bits of an int64
_FEW = 1 << 12  # up to so many words are kept in a cache
_CHUNK = 1 << 16  # words hashed at a time on CPUs, so that temporary numbers stay in its cache


def sign_words(num_words: int, *, seed: int, stream: int, device: torch.device) -> Tensor:
    """Draw words of 32 random signs each: every bit is an independent fair coin.

    Args:
        num_words: How many words.
        seed: Any integer.
        stream: Words of different streams are unrelated, also for the same seed.
        device: Where to compute them; the words are the same everywhere.

    Returns:
        The words, int32, shape (num_words,). Do not change them in place: they may be cached.

    Source:
        The integer hash of C. Wellons, Prospecting for hash functions (2018), with the multipliers
        that TheIronBorn found for it; the key, from seed and stream, enters at two places. Numbers
        below 2^32 times multipliers below 2^31 never overflow an int64. Cost: 14 operations on
        ``num_words`` integers.
    """
    if num_words <= _FEW:
        return _few_sign_words(num_words, seed, stream, device)
    return _hash(num_words, seed, stream, device)


@lru_cache(maxsize=1024)  # at most 16 MiB; for few words the 14 calls take longer than the work
def _few_sign_words(num_words: int, seed: int, stream: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cache may be used in or out of inference mode
        return _hash(num_words, seed, stream, device)


def sign_key(seed: int, stream: int) -> int:
    """Derive the key of the words of a stream, of 63 bits."""
    return derive_seed("signs", seed, stream)


def _hash(num_words: int, seed: int, stream: int, device: torch.device) -> Tensor:
    key = sign_key(seed, stream)
    words = torch.empty(num_words, dtype=torch.int32, device=device)
    size = min(num_words, _CHUNK) if device.type == "cpu" else num_words
    # Memory for all chunks: fresh memory costs CPUs more than what fills it.
    buffers = torch.empty(2, size, dtype=torch.int64, device=device)
    for first in range(0, num_words, size):
        part = words[first : first + size]
        x, shifted = buffers[:, : len(part)]
        torch.arange(first, first + len(part), out=x)
        x.add_(key & _WORD).bitwise_and_(_WORD)
        x.bitwise_xor_(torch.bitwise_right_shift(x, 16, out=shifted))
        x.mul_(0x21F0AAAD).bitwise_and_(_WORD)
        x.bitwise_xor_(key >> 31)  # 32 further bits: alone, those above would only shift the words
        x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=shifted))
        x.mul_(0x735A2D97).bitwise_and_(_WORD)
        x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=shifted))
        part.copy_(x.sub_(1 << 31))  # from [0, 2^32) into the range of int32
    return words
