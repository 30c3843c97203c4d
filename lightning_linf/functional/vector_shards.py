"""Vectors of which every rank holds a shard, and reductions over all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

_SHARDS: ContextVar["VectorShards | None"] = ContextVar("vector_shards", default=None)


@dataclass(frozen=True)
class VectorShards:
    """How vectors of d entries are divided among ranks, and how ranks add up what each computes.

    A vector (d,) is the parameters of a module, flattened and joined. Of every parameter each rank
    has one stretch, in the order of ranks; the shard of a vector is this rank's stretches, joined.
    So every entry belongs to exactly one rank, however parameters are sharded or replicated.

    Args:
        sizes: Number of entries of each whole parameter.
        rank: Of this process among those that share the vector.
        num_ranks: How many these are.
        sum_over_ranks: Adds up a tensor, the same on all ranks afterwards; perhaps in place. If a
            rank has failed meanwhile, it should raise on all of them.
        max_over_ranks: The same, for maxima of floating numbers; NaN where a rank has NaN.
    """

    sizes: Sequence[int]
    rank: int
    num_ranks: int
    sum_over_ranks: Callable[[Tensor], Tensor]
    max_over_ranks: Callable[[Tensor], Tensor]

    @property
    def num_params(self) -> int:
        """Number of entries d of a whole vector."""
        return sum(self.sizes)

    @property
    def num_local(self) -> int:
        """Number of entries of this rank's shard."""
        return sum(map(len, self.stretches()))

    def stretches(self, rank: int | None = None) -> list[range]:
        """Give a rank's entries of each parameter, numbered within the parameter; may be empty."""
        rank = self.rank if rank is None else rank
        result = []
        for size in self.sizes:
            most = -(-size // self.num_ranks)  # as torch.chunk cuts, and so Shard
            result.append(range(min(size, rank * most), min(size, (rank + 1) * most)))
        return result

    def numbers(self, rank: int | None = None) -> list[range]:
        """Give a rank's entries of each parameter, numbered within the whole vector."""
        result, first = [], 0
        for size, stretch in zip(self.sizes, self.stretches(rank), strict=True):
            result.append(range(first + stretch.start, first + stretch.stop))
            first += size
        return result


@contextmanager
def sharing_vectors(shards: VectorShards | None) -> Iterator[None]:
    """Let vectors be shards inside, and reductions over their entries be those over all ranks.

    With None vectors are whole. A context, as
    :func:`~lightning_linf.functional.offload.offloading` is one: estimators reduce vectors deep
    inside of what their callers see.
    """
    token = _SHARDS.set(shards)
    try:
        yield
    finally:
        _SHARDS.reset(token)


def shards_of_vectors() -> VectorShards | None:
    """Tell how vectors are divided here; None: they are whole."""
    return _SHARDS.get()


def sum_over_shards(local: Tensor) -> Tensor:
    """Add up over ranks what each has computed from its shard of a vector."""
    shards = _SHARDS.get()
    return local if shards is None else shards.sum_over_ranks(local)


def max_over_shards(local: Tensor) -> Tensor:
    """Take the maximum over ranks of what each has computed from its shard of a vector."""
    shards = _SHARDS.get()
    return local if shards is None else shards.max_over_ranks(local)


def num_entries(vector: Tensor) -> int:
    """Number of entries d of a whole vector, of which ``vector`` may be a shard."""
    shards = _SHARDS.get()
    return len(vector) if shards is None else shards.num_params


def num_here(num_params: int) -> int:
    """Number of entries that a vector of ``num_params`` has here: of its shard, or all."""
    shards = _SHARDS.get()
    return num_params if shards is None else shards.num_local


def sizes_here(sizes: Sequence[int]) -> list[int]:
    """Number of entries that each tensor has here, of ``sizes`` in all.

    Raises:
        ValueError: If vectors are shards of tensors of other sizes.
    """
    return [len(stretch) for stretch in stretches_here(sizes)]


def stretches_here(sizes: Sequence[int]) -> list[range]:
    """Give the entries of each tensor that vectors have here, numbered within the tensor.

    Raises:
        ValueError: If vectors are shards of tensors of other sizes.
    """
    shards = _SHARDS.get()
    if shards is None:
        return [range(size) for size in sizes]
    if list(sizes) != list(shards.sizes):
        raise ValueError(
            f"sharing_vectors: expected the sizes of the {len(shards.sizes)} tensors that are "
            f"shared, {sum(shards.sizes):,} entries, got {len(sizes)} sizes with {sum(sizes):,}. "
            "Pass those of all parameters, in order."
        )
    return shards.stretches()


def numbers_here(num_params: int) -> list[range]:
    """Give the entries of a vector that are here, numbered within the whole; in order."""
    shards = _SHARDS.get()
    return [range(num_params)] if shards is None else shards.numbers()


def any_nonzero(vector: Tensor) -> bool:
    """Say whether any entry of a vector is not zero."""
    if _SHARDS.get() is None:
        return bool(vector.any())
    return bool(max_over_shards(vector.any().to(torch.float32)) > 0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two vectors of one dtype. Shape: ()."""
    return sum_over_shards(torch.dot(a, b))


def two_norm(vector: Tensor) -> Tensor:
    """Compute the 2-norm of a vector. Shape: ()."""
    local = torch.linalg.vector_norm(vector)
    return local if _SHARDS.get() is None else sum_over_shards(local.square()).sqrt()


def whole_vectors(local: Tensor) -> Tensor:
    """Gather whole vectors on all ranks, for problems that are small. (..., local) -> (..., d)."""
    shards = _SHARDS.get()
    if shards is None:
        return local
    whole = local.new_zeros(*local.shape[:-1], shards.num_params)
    first = 0
    for numbers in shards.numbers():
        part = local.narrow(-1, first, len(numbers))
        whole.narrow(-1, numbers.start, len(numbers)).copy_(part)
        first += len(numbers)
    return shards.sum_over_ranks(whole)


def shards_of(whole: Tensor) -> Tensor:
    """Take this rank's shards of vectors that all ranks have; (..., d) -> (..., local)."""
    shards = _SHARDS.get()
    if shards is None:
        return whole
    parts = [whole[..., numbers.start : numbers.stop] for numbers in shards.numbers()]
    return torch.cat(parts, dim=-1)
