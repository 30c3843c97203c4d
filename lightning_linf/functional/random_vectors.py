"""Random vectors of which every rank draws its own shard: the numbers that one process draws."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_linf.functional.random import cauchy, chunks, normal
from lightning_linf.functional.vector_shards import (
    num_here,
    numbers_here,
    shards_of_vectors,
)


def normal_vector(num_params: int, *, seed: int, like: Tensor) -> Tensor:
    """Draw a vector of independent standard normal entries: a shard where vectors are shards.

    Args:
        num_params: Number of entries d of the whole vector.
        seed: Seed of the vector.
        like: A tensor with the dtype and device of the result.

    Returns:
        :func:`~lightning_linf.functional.random.normal`, or the entries of it that are here.
    """
    if shards_of_vectors() is None:
        return normal(num_params, seed=seed, dtype=like.dtype, device=like.device)
    result = torch.empty(num_here(num_params), dtype=like.dtype, device=like.device)
    for part, numbers in _stretches(num_params):
        result[part] = normal(
            len(numbers), seed=seed, first=numbers.start, whole=num_params,
            dtype=like.dtype, device=like.device,
        )  # fmt: skip
    return result


def cauchy_vector(num_params: int, *, seed: int, probe: int, like: Tensor) -> Tensor:
    """Draw a vector of independent standard Cauchy entries: a shard where vectors are shards.

    Args:
        num_params: Number of entries d of the whole vector.
        seed: Seed of the whole set of probes.
        probe: Number of this probe in the set.
        like: A tensor with the dtype and device of the result.

    Returns:
        :func:`~lightning_linf.functional.random.cauchy`, or the entries of it that are here.
    """
    if shards_of_vectors() is None:
        return cauchy(num_params, seed=seed, probe=probe, dtype=like.dtype, device=like.device)
    result = torch.empty(num_here(num_params), dtype=like.dtype, device=like.device)
    for part, numbers in _stretches(num_params):
        result[part] = cauchy(
            len(numbers), seed=seed, probe=probe, first=numbers.start,
            dtype=like.dtype, device=like.device,
        )  # fmt: skip
    return result


def numbered_chunks(
    num_params: int, device: torch.device, multiple: int = 1
) -> Iterator[tuple[slice, int]]:
    """Cut the entries that are here into chunks: where they are, and the number of the first one.

    Args:
        num_params: Number of entries d of the whole vector.
        device: Where they are computed with, which says how many at a time.
        multiple: Chunks of a whole vector begin at multiples of it.
    """
    for part, numbers in _stretches(num_params):
        for chunk in chunks(len(numbers), device, multiple):
            start, stop = part.start + chunk.start, part.start + chunk.stop
            yield slice(start, stop), numbers.start + chunk.start


def _stretches(num_params: int) -> Iterator[tuple[slice, range]]:
    """Give where each stretch is here, and its numbers in the whole vector."""
    first = 0
    for numbers in numbers_here(num_params):
        yield slice(first, first + len(numbers)), numbers
        first += len(numbers)
