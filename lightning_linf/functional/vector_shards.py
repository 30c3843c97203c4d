"""Vectors of which every rank holds a shard, and reductions over all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

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
        sum_over_ranks: Adds up a tensor, the same on all ranks afterwards; perhaps in place.
        max_over_ranks: The same, for maxima; NaN where a rank has NaN.
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
