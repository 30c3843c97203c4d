"""Entries of a vector that one rank holds, as few strips, and what two of them have in common."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Strip(NamedTuple):
    """Runs of entries, equally long and equally far apart: Strip(2, 3, 10, 4) is 2-5, 12-15, 22-25.

    The rows of a matrix, some of its columns, and a single run are all of this form.
    """

    start: int
    rows: int
    stride: int  # from the start of a run to that of the next
    width: int  # length of a run

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.rows * self.width

    @property
    def stop(self) -> int:
        """The number after that of the last entry."""
        return self.start + (self.rows - 1) * self.stride + self.width

    def is_one_run(self) -> bool:
        """Whether the entries are neighbours."""
        return self.rows == 1 or self.stride == self.width

    def place(self, number: int) -> int:
        """Count the entries of the strip before the one of this number."""
        if self.is_one_run():
            return number - self.start
        row, column = divmod(number - self.start, self.stride)
        return row * self.width + column

    def view(self, local: Tensor, offset: int, outer: "Strip") -> Tensor:
        """View these entries, (rows, width), in a vector that holds ``outer`` from offset on."""
        place = outer.place(self.start)
        stride = outer.place(self.start + self.stride) - place if self.rows > 1 else self.width
        first = local.storage_offset() + offset + place
        return torch.as_strided(local, (self.rows, self.width), (stride, 1), first)


Layout = Sequence[Sequence[Strip]]
"""The strips of each rank, in the order in which it holds them."""


def run(start: int, stop: int) -> Strip:
    """Make a strip of neighbours."""
    return Strip(start, 1, stop - start, stop - start)


def total(strips: Sequence[Strip]) -> int:
    """Number of entries of several strips."""
    return sum(strip.rows * strip.width for strip in strips)


def common(a: Strip, b: Strip) -> Iterator[Strip]:
    """Yield what two strips have in common, as few strips, in the same order for (a, b) anywhere.

    Each part has the stride of one of them, so it is a box in the memory of either.
    """
    if a.stop <= b.start or b.stop <= a.start:
        return
    if b.is_one_run():
        yield from _within(a, b.start, b.stop)
    elif a.is_one_run():
        yield from _within(b, a.start, a.stop)
    elif a.stride == b.stride:
        yield from _alike(a, b)
    else:
        few, other = (a, b) if a.rows <= b.rows else (b, a)
        first = max(0, (other.start - few.start) // few.stride)
        last = min(few.rows, -(-(other.stop - few.start) // few.stride))
        for row in range(first, last):
            start = few.start + row * few.stride
            yield from _within(other, start, start + few.width)


def _within(strip: Strip, start: int, stop: int) -> Iterator[Strip]:
    """Yield the part of a strip from number ``start`` to ``stop - 1``."""
    if strip.is_one_run():
        low, high = max(strip.start, start), min(strip.stop, stop)
        if low < high:
            yield run(low, high)
        return
    row = max(0, (start - strip.start - strip.width) // strip.stride + 1)  # first that ends later
    while row < strip.rows:
        begin = strip.start + row * strip.stride
        if begin >= stop:
            return
        low, high = max(begin, start), min(begin + strip.width, stop)
        if high - low < strip.width:
            yield run(low, high)
            row += 1
            continue
        whole = min(strip.rows, (stop - strip.start - strip.width) // strip.stride + 1) - row
        yield Strip(begin, whole, strip.stride if whole > 1 else strip.width, strip.width)
        row += whole


def _alike(a: Strip, b: Strip) -> Iterator[Strip]:
    """Yield what two strips of the same stride have in common."""
    shift, column = divmod(b.start - a.start, a.stride)
    ends = column + b.width - a.stride  # a run of b may go on in the next row of a
    for first_row, low, high in (
        (shift, column, min(a.width, column + b.width)),
        (shift + 1, 0, min(a.width, ends)),
    ):
        top, bottom = max(0, first_row), min(a.rows, first_row + b.rows)
        if low < high and top < bottom:
            start = a.start + top * a.stride + low
            rows = bottom - top
            yield Strip(start, rows, a.stride if rows > 1 else high - low, high - low)


def strips_of_box(
    shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int], first: int = 0
) -> list[Strip]:
    """Give the entries of a box within a tensor, in their order, as strips of the flattened tensor.

    Args:
        shape: Of the tensor.
        offsets: First index of the box in each dimension.
        sizes: Of the box in each dimension.
        first: Number of the first entry of the tensor.
    """
    if math.prod(sizes) == 0:
        return []
    dim = len(shape)
    width = step = 1  # of the run, and of an index in the dimension before
    while dim and width == step:  # whole so far: the next dimension makes the run longer
        dim -= 1
        width, step = step * sizes[dim], step * shape[dim]
        first += offsets[dim] * (step // shape[dim])
    if not dim:
        return [run(first, first + width)]
    dim -= 1
    rows, stride = sizes[dim], step
    first += offsets[dim] * stride
    step *= shape[dim]
    starts = [first]
    for each in reversed(range(dim)):
        starts = [
            start + (offsets[each] + i) * step for i in range(sizes[each]) for start in starts
        ]
        step *= shape[each]
    if rows == 1:
        return [run(start, start + width) for start in starts]
    return [Strip(start, rows, stride, width) for start in starts]


def share(strips: Sequence[Strip], part: int, num_parts: int) -> list[Strip]:
    """Give one of several parts of the same strips, about equally large, for holders of copies."""
    if num_parts == 1:
        return list(strips)
    result = []
    for strip in strips:
        if strip.is_one_run():
            size = strip.size
            low, high = size * part // num_parts, size * (part + 1) // num_parts
            if low < high:
                result.append(run(strip.start + low, strip.start + high))
        else:
            low, high = (strip.rows * each // num_parts for each in (part, part + 1))
            start = strip.start + low * strip.stride
            if high - low == 1:
                result.append(run(start, start + strip.width))
            elif low < high:
                result.append(strip._replace(start=start, rows=high - low))
    return result
