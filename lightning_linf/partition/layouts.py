"""How the entries of one tensor fall into blocks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Blocks of one tensor that some of its dimensions index.

    Args:
        view: Shape that the tensor takes first.
        keep: Dimensions of ``view``, ascending, that index the blocks in their order.
            None of them: the tensor is in one block, alone or with other tensors.
        first: Number, in the whole partition, of the first of these blocks.
        is_assumed: No module tells which dimension is the output, so one was taken.

    Example:
        >>> Layout((2, 3), keep=(1,)).block_sum(torch.arange(6))
        tensor([3, 5, 7])
    """

    view: tuple[int, ...]
    keep: tuple[int, ...]
    first: int = 0
    is_assumed: bool = False

    @property
    def num_blocks(self) -> int:
        """Number of blocks that this tensor takes part in."""
        return math.prod(self.view[dim] for dim in self.keep)

    @property
    def is_identity(self) -> bool:
        """Whether every entry is a block."""
        return len(self.keep) == len(self.view)

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum the entries of each block. Shapes: (..., entries) -> (..., blocks)."""
        if self.is_identity:  # torch reads a sum over no dimension as over all
            return values
        ndim = len(self.view)
        rest = [dim - ndim for dim in range(ndim) if dim not in self.keep]
        lead = values.shape[:-1]
        sums = values.reshape(*lead, *self.view).sum(rest, dtype=values.dtype)
        return sums.reshape(*lead, self.num_blocks)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry its block's value. Shapes: (..., blocks) -> (..., entries)."""
        if self.is_identity:
            return values
        lead = values.shape[:-1]
        kept = [size if dim in self.keep else 1 for dim, size in enumerate(self.view)]
        return values.reshape(*lead, *kept).expand(*lead, *self.view).flatten(len(lead))

    def counts(self, device: torch.device) -> Tensor:
        """Count this tensor's entries in each block. Shape: (blocks,)."""
        entries = math.prod(self.view) // max(1, self.num_blocks)
        return torch.full((self.num_blocks,), entries, device=device)


@dataclass(frozen=True, eq=False)
class IndexLayout:
    """Blocks of one tensor in no regular arrangement.

    Args:
        index: Block of every entry, counted from this tensor's first. Shape: (entries,).
        num_blocks: Number of blocks.
        first: Number, in the whole partition, of the first of these blocks.
    """

    index: Tensor
    num_blocks: int
    first: int = 0
    is_identity = False
    is_assumed = False

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum the entries of each block. Shapes: (..., entries) -> (..., blocks)."""
        sums = values.new_zeros((*values.shape[:-1], self.num_blocks))
        return sums.index_add(-1, self.index.to(values.device), values)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry its block's value. Shapes: (..., blocks) -> (..., entries)."""
        return values.index_select(-1, self.index.to(values.device))

    def counts(self, device: torch.device) -> Tensor:
        """Count this tensor's entries in each block. Shape: (blocks,)."""
        return torch.bincount(self.index, minlength=self.num_blocks).to(device)
