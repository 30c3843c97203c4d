"""A partition of vectors of which every rank holds a shard."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_linf.partition.layouts import IndexLayout, Layout
from lightning_linf.partition.partition import Partition
from lightning_linf.partition.refinement import is_finer_on_ranks


class Shards(Protocol):
    """What is needed of :class:`~lightning_linf.functional.vector_shards.VectorShards`."""

    @property
    def sum_over_ranks(self) -> Callable[[Tensor], Tensor]:
        """Adds up a tensor, perhaps in place."""

    @property
    def max_over_ranks(self) -> Callable[[Tensor], Tensor]:
        """The same, for maxima."""

    def stretches(self) -> Sequence[range]:
        """Give this rank's entries of each parameter, numbered within the parameter."""


class ShardedPartition(Partition):
    """The blocks of a partition, for vectors of which every rank holds a shard.

    A block may have entries on several ranks. Names, shapes, numbers, layouts and sizes are those
    of the whole; ``block_sum`` takes shards and adds up over ranks, ``expand`` and ``pieces`` give
    what belongs to the shard. Where every entry is a block, numbers by block are shards, too, and
    nothing is sent. Every rank must make the same calls of ``block_sum`` and :meth:`refines`.

    Args:
        whole: The partition.
        shards: How vectors are divided.
        device: Of the vectors.

    Attributes:
        num_local: Number of entries of a shard.
    """

    def __init__(self, whole: Partition, shards: Shards, device: torch.device) -> None:
        vars(self).update(vars(whole))  # names, shapes and numbers are the same
        self._whole = whole
        self._shards, self._device = shards, device
        self._local = [
            piece
            for layout, entries in zip(whole.layouts, shards.stretches(), strict=True)
            for piece in layout.stretch(entries)
        ]  # numbers of entries, and how they fall into blocks
        self.num_local = sum(count for count, _ in self._local)

    @property
    def whole(self) -> Partition:
        """The partition, for vectors that are no shards."""
        return self._whole

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum over the entries of each block on all ranks: (..., local) -> (..., B)."""
        self._check_last("block_sum", values, "local", self.num_local)
        if self.is_identity:
            return values
        sums = values.new_zeros(*values.shape[:-1], self.num_blocks)
        for (_, layout), part in zip(self._local, self._parts(values), strict=True):
            sums.narrow(-1, layout.first, layout.num_blocks).add_(layout.block_sum(part))
        return self._shards.sum_over_ranks(sums)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry that is here the value of its block: (..., B) -> (..., local)."""
        self._check_last("expand", values, "B", self.num_local_blocks)
        if self.is_identity:
            return values
        result = values.new_empty(*values.shape[:-1], self.num_local)
        for (_, layout), part in zip(self._local, self._parts(result), strict=True):
            part.copy_(layout.expand(values.narrow(-1, layout.first, layout.num_blocks)))
        return result

    @property
    def num_local_blocks(self) -> int:
        """How many numbers by block a rank holds: all B, or where blocks are entries its own."""
        return self.num_local if self.is_identity else self.num_blocks

    def sizes(self, like: Tensor) -> Tensor:
        """Count the entries of each block on all ranks, in the dtype of ``like``: (B,)."""
        return like.new_ones(self.num_local) if self.is_identity else self.whole.sizes(like)

    def pieces(self, most: int) -> Iterator[tuple[slice, Layout | IndexLayout]]:
        """Cut the entries that are here into pieces of at most ``most``, each with its blocks."""
        start = 0
        for _, layout in self._local:
            for count, piece in layout.pieces(most):
                yield slice(start, start + count), piece
                start += count

    def refines(self, other: Partition) -> bool:
        """Tell whether every block lies inside a single block of ``other``; told to all ranks.

        Every rank compares its own entries. Memory: of a few million whole numbers, and two for
        each block.

        Raises:
            ValueError: If ``other`` splits other parameters than this one.
        """
        self.check(other.names, other.shapes)
        if self.is_identity or other.num_blocks == 1:
            return True
        return is_finer_on_ranks(
            self.layouts,
            other.layouts,
            self.num_blocks,
            self._shards.stretches(),
            self._shards.max_over_ranks,
            self._device,
        )

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split_with_sizes([count for count, _ in self._local], dim=-1)
