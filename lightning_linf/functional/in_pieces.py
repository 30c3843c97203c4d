"""Sums over long vectors in float64, without a copy of them in float64."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.vector_shards import max_over_shards, sum_over_shards

# A piece is a small part of a vector, so that what is computed of it hardly counts beside it; but
# not so small that a GPU, which has to be asked for each, waits for the next.
_PIECES = 32
_LEAST = 1 << 16


def piece_size(dim: int) -> int:
    """How many of ``dim`` entries to work on at a time."""
    return max(_LEAST, -(-dim // _PIECES))


def pieces_of(dim: int) -> Iterator[slice]:
    """Cut ``range(dim)`` into slices."""
    size = piece_size(dim)
    for start in range(0, dim, size):
        yield slice(start, min(start + size, dim))


def sum_in_pieces(function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Add up a function of the entries of vectors (d,), computed for a piece of them at a time.

    ``vector.sum(dtype=torch.float64)`` would make a copy of all of it, of twice its size. Of
    vectors that are shards this is the sum over all ranks.

    Args:
        function: From pieces of the vectors, in float64 (float32 on MPS), to terms of the sum; it
            may not change the pieces.
        vectors: Of one shape (d,).

    Returns:
        The sum, float64 (float32 on MPS). Shape: ().
    """
    return sum_over_shards(local_sum_in_pieces(function, *vectors))


def local_sum_in_pieces(function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Do what :func:`sum_in_pieces` does for the entries of this rank alone."""
    wide = wide_dtype(vectors[0])
    total = vectors[0].new_zeros((), dtype=wide)
    for part in pieces_of(len(vectors[0])):
        total += function(*(vector[part].to(wide) for vector in vectors)).sum()
    return total


def largest_magnitude(values: Tensor) -> Tensor:
    """Find the largest magnitude, NaN if an entry is, without a copy of the magnitudes. ().

    Of vectors that are shards it is that of all ranks.
    """
    return max_over_shards(local_largest_magnitude(values))


def local_largest_magnitude(values: Tensor) -> Tensor:
    """Do what :func:`largest_magnitude` does for the entries of this rank alone."""
    if not values.numel():
        return values.new_zeros(())
    least, most = torch.aminmax(values)  # on a CPU a norm of order inf takes 15 times as long
    return torch.maximum(-least, most)
