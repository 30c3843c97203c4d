"""Blocks that are slices, as dimensions that alternate between blocks and their entries."""

import math
from itertools import groupby
from typing import NamedTuple

from lightning_linf.partition.layouts import IndexLayout, Layout


class Slices(NamedTuple):
    """A contiguous tensor as (slabs, rows, groups, width): slab and group number a block.

    Example: the columns of a (2, 3) matrix have 1 slab of 2 rows, and 3 groups of width 1.
    """

    slabs: int
    rows: int
    groups: int
    width: int

    @property
    def is_across(self) -> bool:
        """Whether a block has parts in several rows, each between those of other blocks."""
        return self.groups > 1

    @property
    def matrix(self) -> tuple[int, int, int]:
        """Slabs, rows and columns: along, one slab of a row for each block; across, all groups."""
        if self.is_across:
            return self.slabs, self.rows, self.groups * self.width
        return 1, self.slabs, self.rows * self.width


def slices(layout: Layout | IndexLayout) -> Slices | None:
    """Merge neighbouring dimensions that are alike; None if that leaves more than four."""
    if isinstance(layout, IndexLayout):
        return None
    kept = [dim in layout.keep for dim, size in enumerate(layout.view) if size != 1]
    sizes = iter([size for size in layout.view if size != 1])
    runs = [(key, math.prod(next(sizes) for _ in run)) for key, run in groupby(kept)]
    if not runs or not runs[0][0]:
        runs = [(True, 1), *runs]
    if len(runs) > 4:
        return None
    return Slices(*[size for _, size in runs], *[1] * (4 - len(runs)))
