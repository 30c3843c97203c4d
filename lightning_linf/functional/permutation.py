"""Random permutations whose images can be drawn in parts, from a seed."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from lightning_linf.functional.counters import LAST_SHIFT, ROUNDS
from lightning_linf.functional.random import chunks, derive_seed

_SMALL = 1 << 16  # up to so many numbers are permuted by a table
_NUM_ROUNDS = 8
_WORD = 0xFFFFFFFF  # the low 32 bits of an int64


def permuted(
    first: int,
    count: int,
    *,
    size: int,
    seed: int,
    inverse: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Give the images of ``first`` to ``first + count - 1`` under a permutation of range(size).

    Up to 65,536 numbers are permuted by torch's generator, so that all permutations are equally
    likely. More are written as pairs (l, r), l < a, r < b, of about :math:`\sqrt{size}` each, and
    l and r are shifted in turns by hashes of the other. An image outside of the range is permuted
    again, until it is inside: a times b is hardly more than ``size``.

    Args:
        first: The first number.
        count: How many.
        size: How many numbers are permuted.
        seed: Seed of the permutation, which is the same on every device.
        inverse: Give the images under the inverse.
        device: Of the result.

    Returns:
        The images, int64, shape (count,).

    Source:
        Rounds: Luby & Rackoff, SIAM J. Comput. 17 (1988). Pairs and images outside of the range:
        Black & Rogaway, Ciphers with arbitrary finite domains (2002). Cost: 8 hashes a number.
    """
    device = torch.device(device)
    if size <= _SMALL:
        return _table(size, seed, inverse)[first : first + count].clone().to(device)
    images = torch.arange(first, first + count, device=device)
    for part in chunks(count, device):
        chunk = _shuffle(images[part], size, seed, inverse)
        while (outside := chunk >= size).any():
            chunk[outside] = _shuffle(chunk[outside], size, seed, inverse)
        images[part] = chunk
    return images


@lru_cache(maxsize=256)  # at most 128 MiB
def _table(size: int, seed: int, inverse: bool) -> Tensor:
    with torch.inference_mode(False):  # the cache may be used in or out of inference mode
        generator = torch.Generator("cpu").manual_seed(seed)
        table = torch.randperm(size, generator=generator, device="cpu", dtype=torch.int64)
        if inverse:
            numbers = torch.arange(size, device="cpu")
            table = torch.empty_like(table).scatter_(0, table, numbers)
        return table


def _shuffle(numbers: Tensor, size: int, seed: int, inverse: bool) -> Tensor:
    """Permute the numbers below a b, of which all those below ``size`` are given or come out."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    left, right = numbers // b, numbers % b
    for number in range(_NUM_ROUNDS)[:: -1 if inverse else 1]:
        key = derive_seed("permutation round", seed, number)
        moved, other, most = (left, right, a) if number % 2 else (right, left, b)
        shift = _hashes(other, key).mul_(most).bitwise_right_shift_(32)  # uniform below `most`
        moved.add_(most - shift if inverse else shift).remainder_(most)
    return left.mul_(b).add_(right)


def _hashes(numbers: Tensor, key: int) -> Tensor:
    """Hash numbers to 32 bits, as :func:`~lightning_linf.functional.counters.hashed_words` does."""
    x = numbers + (key & _WORD)
    for place, (shift, multiplier) in enumerate(ROUNDS):
        x.bitwise_and_(_WORD)
        x.bitwise_xor_(x >> shift).mul_(multiplier)  # whose low 32 bits are right if it overflows
        if place == 0:
            x.bitwise_xor_(key >> 31)
    x.bitwise_and_(_WORD)
    return x.bitwise_xor_(x >> LAST_SHIFT)
