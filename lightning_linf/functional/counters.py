"""Random words from a hash of their number: the same on every device, however they are divided."""

import torch
from torch import Tensor

NUM_COUNTERS = 1 << 32  # how many words one key gives
# Shift to the right and odd multiplier of each round, and the shift after the last one.
ROUNDS = ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 0x846CA68B))
LAST_SHIFT = 16


def hashed_words(first: int, count: int, *, key: int, device: torch.device) -> Tensor:
    """Hash the counters from ``first`` to ``first + count - 1`` to words of 32 random bits each.

    For one key it is a permutation of all 32-bit words, so no word comes twice.

    Args:
        first: The first counter.
        count: How many; ``first + count`` is at most 2^32.
        key: 63 random bits (:func:`~lightning_linf.functional.random.derive_seed`). Words of
            different keys are unrelated.
        device: Where to compute them; the words are the same everywhere.

    Returns:
        The words, int32, shape (count,).

    Source:
        Rounds of xor-shift and multiplication as in C. Wellons, Prospecting for hash functions
        (2018), with the two multipliers that TheIronBorn found. Counters that differ in high bits
        alone need a third round: after two of them the signs of words 65,536 apart correlate. The
        key enters at two places: at the first alone, it would only shift the words. Cost: 18
        operations on ``count`` integers of 32 bits, whose products wrap around.
    """
    low, high = key_words(key)
    # Sums of int32 wrap around, so counters above 2^31 are right, too.
    words = torch.arange(count, dtype=torch.int32, device=device).add_(signed(first + low))
    shifted = torch.empty_like(words)
    for number, (shift, multiplier) in enumerate(ROUNDS):
        _xor_shift(words, shift, shifted).mul_(signed(multiplier))
        if number == 0:
            words.bitwise_xor_(signed(high))
    return _xor_shift(words, LAST_SHIFT, shifted)


def key_words(key: int) -> tuple[int, int]:
    """Split a key into what is added to the counters and what enters after the first round."""
    return key & 0xFFFFFFFF, key >> 31


def signed(value: int) -> int:
    """Read the low 32 bits of an integer as an int32."""
    return ((value + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _xor_shift(words: Tensor, shift: int, buffer: Tensor) -> Tensor:
    torch.bitwise_right_shift(words, shift, out=buffer)  # copies of the sign come in from the left
    return words.bitwise_xor_(buffer.bitwise_and_((1 << (32 - shift)) - 1))
