"""Random signs from a hash of their number: equal on every device and in every version of torch."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from lightning_linf.functional.random import chunk_size, derive_seed

_WORD = 0xFFFFFFFF  # the low 32 bits of an int64
_FEW = 1 << 12  # up to so many words are kept in a cache
_CHUNK = 1 << 16  # words hashed at a time on CPUs, so that temporary numbers stay in its cache


def sign_words(
    num_words: int, *, seed: int, stream: int, device: torch.device, first: int = 0
) -> Tensor:
    """Draw words of 32 random signs each: every bit is an independent fair coin.

    Args:
        num_words: How many words.
        seed: Any integer.
        stream: Words of different streams are unrelated, also for the same seed.
        device: Where to compute them; the words are the same everywhere.
        first: Number of the first of them.

    Returns:
        The words, int32, shape (num_words,). Do not change them in place: they may be cached.

    Source:
        The integer hash of C. Wellons, Prospecting for hash functions (2018), with the multipliers
        that TheIronBorn found for it; the key, from seed and stream, enters at two places. Numbers
        below 2^32 times multipliers below 2^31 never overflow an int64. Cost: 14 operations on
        ``num_words`` integers.
    """
    if num_words <= _FEW:
        return _few_sign_words(num_words, seed, stream, device, first)
    return _hash(num_words, seed, stream, device, first)


@lru_cache(maxsize=1024)  # at most 16 MiB; for few words the 14 calls take longer than the work
def _few_sign_words(
    num_words: int, seed: int, stream: int, device: torch.device, first: int
) -> Tensor:
    with torch.inference_mode(False):  # the cache may be used in or out of inference mode
        return _hash(num_words, seed, stream, device, first)


def sign_key(seed: int, stream: int) -> int:
    """Derive the key of the words of a stream, of 63 bits."""
    return derive_seed("signs", seed, stream)


def _hash(num_words: int, seed: int, stream: int, device: torch.device, first: int) -> Tensor:
    key = sign_key(seed, stream)
    words = torch.empty(num_words, dtype=torch.int32, device=device)
    size = min(num_words, _CHUNK) if device.type == "cpu" else num_words
    # Memory for all chunks: fresh memory costs CPUs more than what fills it.
    buffers = torch.empty(2, size, dtype=torch.int64, device=device)
    for begin in range(0, num_words, size):
        part = words[begin : begin + size]
        x, shifted = buffers[:, : len(part)]
        torch.arange(first + begin, first + begin + len(part), out=x)
        x.add_(key & _WORD).bitwise_and_(_WORD)
        x.bitwise_xor_(torch.bitwise_right_shift(x, 16, out=shifted))
        x.mul_(0x21F0AAAD).bitwise_and_(_WORD)
        x.bitwise_xor_(key >> 31)  # 32 further bits: alone, those above would only shift the words
        x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=shifted))
        x.mul_(0x735A2D97).bitwise_and_(_WORD)
        x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=shifted))
        part.copy_(x.sub_(1 << 31))  # from [0, 2^32) into the range of int32
    return words


def flip_signs_(
    y: Tensor, stretches: Iterable[tuple[int, int, int]], num_bits: int, *, seed: int, stream: int
) -> None:
    """Multiply some entries of a window of 2^k entries with its random signs, in place.

    The signs are those of :class:`~lightning_linf.functional.kronecker.SignedKronecker`: entry j
    takes bit ``31 - j // n`` of word ``j % n``, n = 2^(k-5). Each word is drawn once.

    Args:
        y: Shape (m, u), contiguous, float32 or float64: u numbers for each entry.
        stretches: Of neighbouring entries: row of the first in ``y``, its number j, and how many.
        num_bits: k.
        seed: As for :func:`sign_words`.
        stream: As for :func:`sign_words`.
    """
    integer = torch.int32 if y.dtype == torch.float32 else torch.int64
    flipped = y.view(integer)
    num_words = 1 << max(0, num_bits - 5)
    by_bit = []  # row in y, bit, first word, words
    for row, number, length in stretches:
        while length > 0:
            bit, word = divmod(number, num_words)
            size = min(length, num_words - word)
            by_bit.append((row, bit, word, size))
            row, number, length = row + size, number + size, length - size
    for begin in range(0, num_words, step := chunk_size(y.device)):
        parts = [
            (row + low - word, bit, low, high)
            for row, bit, word, size in by_bit
            if (low := max(begin, word)) < (high := min(begin + step, word + size))
        ]
        if not parts:
            continue
        first, last = min(low for *_, low, _ in parts), max(high for *_, high in parts)
        words = sign_words(last - first, seed=seed, stream=stream, device=y.device, first=first)
        for row, bit, low, high in parts:
            mask = words[low - first : high - first].to(integer)
            mask = mask.bitwise_left_shift(torch.iinfo(integer).bits - 32 + bit)
            mask.bitwise_and_(torch.iinfo(integer).min)
            flipped[row : row + high - low].bitwise_xor_(mask[:, None])
