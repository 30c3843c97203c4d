"""Layouts: how the entries of one parameter tensor fall into blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Blocks that are slices of a tensor: one for each index into some of its dimensions.

    The columns of a (2, 3) matrix, for example, are ``Layout((2, 3), keep=(1,))``.

    Args:
        view: The shape that the tensor is viewed in.
        keep: The dimensions of ``view``, ascending, whose indices number the blocks. Empty if the
            whole tensor lies in one block, which other tensors may share.
        first: The number that the first of these blocks has in the partition.
        is_assumed: Whether the output dimension was assumed, because no module tells it.

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
        """How many blocks have entries of this tensor."""
        return math.prod(self.view[dim] for dim in self.keep)

    @property
    def is_identity(self) -> bool:
        """Whether every entry is a block of its own."""
        return len(self.keep) == len(self.view)

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum the entries of each block. Shapes: (..., entries) -> (..., blocks)."""
        if self.is_identity:  # no dimension to sum over, which torch would take for all of them
            return values
        ndim = len(self.view)
        rest = [dim - ndim for dim in range(ndim) if dim not in self.keep]
        lead = values.shape[:-1]
        sums = values.reshape(*lead, *self.view).sum(rest, dtype=values.dtype)
        return sums.reshape(*lead, self.num_blocks)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry the value of its block. Shapes: (..., blocks) -> (..., entries)."""
        if self.is_identity:
            return values
        lead = values.shape[:-1]
        kept = [size if dim in self.keep else 1 for dim, size in enumerate(self.view)]
        return values.reshape(*lead, *kept).expand(*lead, *self.view).flatten(len(lead))

    def counts(self, device: torch.device) -> Tensor:
        """Count this tensor's entries in each block. Shape: (blocks,)."""
        entries = math.prod(self.view) // max(1, self.num_blocks)
        return torch.full((self.num_blocks,), entries, device=device)

    def stretch(self, entries: range) -> Iterator[tuple[int, "Layout"]]:
        """Cut neighbouring entries into pieces that are slices of the tensor, in their order.

        Yields:
            The number of entries of each piece, and how they fall into blocks.

        Example:
            >>> [piece.view for _, piece in Layout((3, 4), keep=(0,)).stretch(range(2, 9))]
            [(2,), (1, 4), (1,)]
        """
        if len(entries) == math.prod(self.view):
            yield len(entries), self
            return
        inner = math.prod(self.view[1:])
        blocks_inside = self.num_blocks // self.view[0] if 0 in self.keep else 0
        start = entries.start
        while start < entries.stop:
            row, begin = divmod(start, inner)
            first = self.first + row * blocks_inside
            whole_rows = 0 if begin else (entries.stop - start) // inner
            if whole_rows:
                view = (whole_rows, *self.view[1:])
                yield whole_rows * inner, replace(self, view=view, first=first)
                start += whole_rows * inner
            else:
                keep = tuple(dim - 1 for dim in self.keep if dim)
                end = min(inner, begin + entries.stop - start)
                of_row = replace(self, view=self.view[1:], keep=keep, first=first)
                yield from of_row.stretch(range(begin, end))
                start += end - begin

    def pieces(self, most: int) -> Iterator[tuple[int, "Layout"]]:
        """Cut the entries, in their order, into pieces of at most ``most``.

        Yields:
            The number of entries of each piece, and how they fall into blocks.
        """
        if not self.view:  # a tensor without dimensions
            yield 1, self
            return
        length, inner = self.view[0], math.prod(self.view[1:])
        is_kept = 0 in self.keep
        step = 1 if inner >= most else max(1, most // max(1, inner))
        blocks_inside = self.num_blocks // max(1, length) if is_kept else 0
        for start in range(0, length, step):
            count = min(step, length - start)
            first = self.first + start * blocks_inside
            if inner <= most:
                view = (count, *self.view[1:])
                yield count * inner, replace(self, view=view, first=first)
            else:
                keep = tuple(dim - 1 for dim in self.keep if dim)
                yield from replace(self, view=self.view[1:], keep=keep, first=first).pieces(most)


@dataclass(frozen=True, eq=False)
class IndexLayout:
    """Blocks that are any sets of a tensor's entries.

    Args:
        index: For every entry the number of its block, from 0 to ``num_blocks - 1``: (entries,).
        num_blocks: How many blocks the tensor has.
        first: The number that the first of these blocks has in the partition.
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
        """Give every entry the value of its block. Shapes: (..., blocks) -> (..., entries)."""
        return values.index_select(-1, self.index.to(values.device))

    def counts(self, device: torch.device) -> Tensor:
        """Count this tensor's entries in each block. Shape: (blocks,)."""
        return torch.bincount(self.index, minlength=self.num_blocks).to(device)

    def stretch(self, entries: range) -> Iterator[tuple[int, "IndexLayout"]]:
        """Cut out neighbouring entries, as :meth:`Layout.stretch` does, in one piece."""
        if entries:
            index = self.index[entries.start : entries.stop]
            yield len(entries), replace(self, index=index)

    def pieces(self, most: int) -> Iterator[tuple[int, "IndexLayout"]]:
        """Cut the entries as :meth:`Layout.pieces` does."""
        for index in torch.split(self.index, most):
            yield len(index), replace(self, index=index)
