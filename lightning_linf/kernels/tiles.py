"""How one program of a launch finds its part of one of many tensors.

Entries are taken as a matrix in memory order, of which a program has a few tiles side by side. Two
arrangements cover all blocks that are slices:

- *along*: a row of the matrix is a block, or a block is the only row. The tiles of a program follow
  each other along the columns, and a row has a partial sum for each program.
- *across*: blocks are groups of neighbouring columns, in slabs of so many rows each. The tiles of a
  program follow each other down the rows, and a column has a partial sum for each program.
"""

from collections.abc import Iterable
from typing import NamedTuple

import triton
import triton.language as tl

ENTRIES = 4096  # of a tile: 16 for each of 256 threads
NUM_WARPS = 8
NUM_TILES = 4  # of a program: hides its start, and leaves small models many programs


class Tiling(NamedTuple):
    """The shape of tiles, and which of the two arrangements they are of."""

    is_across: bool
    rows: int
    cols: int

    def num_splits(self, rows: int, cols: int) -> int:
        """Give the number of partial sums that a row has, or a column in each slab of rows."""
        if self.is_across:
            return int(triton.cdiv(rows, self.rows * NUM_TILES))
        return int(triton.cdiv(cols, self.cols * NUM_TILES))

    def num_items(self, slabs: int, rows: int, cols: int) -> int:
        """Give the number of programs for a tensor of slabs of rows."""
        splits = self.num_splits(rows, cols)
        if self.is_across:
            return int(slabs * splits * triton.cdiv(cols, self.cols))
        return int(triton.cdiv(slabs * rows, self.rows) * splits)


WHOLE = Tiling(is_across=False, rows=1, cols=ENTRIES)  # for tensors of any size that are one row


def tiling(is_across: bool, cols: int) -> Tiling:
    """Choose tiles for rows of so many columns: wide ones, unless more than 1/8 would be idle."""
    widths = (128,) if is_across else (ENTRIES, 1024, 256)
    fitting = (width for width in widths if 8 * triton.cdiv(cols, width) * width <= 9 * cols)
    width = next(fitting, min(widths[-1], triton.next_power_of_2(cols)))
    return Tiling(is_across, ENTRIES // width, width)


@triton.jit
def find_part(
    rows,  # of a slab across, of the matrix along
    cols,
    item,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Find the part of an item: its rows, columns, tiles, slab, and where its sums go."""
    if ACROSS:
        num_wide = tl.cdiv(cols, COLS)
        splits = tl.cdiv(rows, ROWS * TILES)
        strip = item // num_wide
        slab = strip // splits
        row = slab * rows + strip % splits * (ROWS * TILES)
        row_stop = tl.minimum(row + ROWS * TILES, (slab + 1) * rows)
        col = item % num_wide * COLS
        col_stop = tl.minimum(col + COLS, cols)
        partial = strip * cols + col
        num_tiles = tl.cdiv(row_stop - row, ROWS)
    else:
        splits = tl.cdiv(cols, COLS * TILES)
        slab = item // splits * 0
        row = item // splits * ROWS
        row_stop = tl.minimum(row + ROWS, rows)
        col = item % splits * (COLS * TILES)
        col_stop = tl.minimum(col + COLS * TILES, cols)
        partial = row * splits + item % splits
        num_tiles = tl.cdiv(col_stop - col, COLS)
    return row, row_stop, col, col_stop, num_tiles, slab, partial


@triton.jit
def find_tile(
    row,
    row_stop,
    col,
    col_stop,
    cols,
    tile,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Find one tile of a part: the offsets of its entries, and which of them there are."""
    if ACROSS:
        row += tile * ROWS
    else:
        col += tile * COLS
    start, num_cols = row * cols + col, col_stop - col
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
    rows = r * cols
    if ALIGNED:
        start, num_cols = tl.multiple_of(start, 16), tl.multiple_of(num_cols, 16)
        rows = tl.multiple_of(rows, (16, 16))
    return start + rows + c, (r < row_stop - row) & (c < num_cols)


@triton.jit
def tensor_at(address, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """Make a pointer to the first entry of the tensor at an address."""
    pointer = address.to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


def is_aligned(cols: int, addresses: Iterable[int]) -> bool:
    """Say whether rows begin and end where wide loads may: at multiples of 16 entries."""
    return cols % 16 == 0 and all(address % 16 == 0 for address in addresses)
