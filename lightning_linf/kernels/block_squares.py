"""Sums of squares of parts of blocks: the first pass over gradients of a blockwise step."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_linf.kernels.numbers import triton_dtype
from lightning_linf.kernels.tiles import (
    NUM_TILES,
    NUM_WARPS,
    Tiling,
    find_part,
    find_tile,
    tensor_at,
)

FIELDS = ("first_item", "rows", "cols", "first_partial")  # of each tensor, in this order


def add_squares(
    grads: Tensor,
    fields: Tensor,
    owners: Tensor,
    partials: Tensor,
    tiles: Tiling,
    dtype: torch.dtype,
    is_aligned: bool,
) -> None:
    """Write partial sums of squares of gradients that have the same tiles and dtype.

    Args:
        grads: Addresses of the gradients, int64: (tensors,).
        fields: Their numbers, as ``FIELDS`` says, int64: (tensors * fields,).
        owners: Number of the tensor of each item: (items,).
        partials: Where the sums go: of each row and split, or of each slab, split and column.
        tiles: The shape of tiles.
        dtype: That of the gradients.
        is_aligned: Whether all rows begin and end at multiples of 16 bytes.
    """
    with torch.cuda.device_of(partials):
        _add_squares[(len(owners),)](
            grads, fields, owners, partials, ACROSS=tiles.is_across, ROWS=tiles.rows,
            COLS=tiles.cols, TILES=NUM_TILES, DTYPE=triton_dtype(dtype), ALIGNED=is_aligned,
            num_warps=NUM_WARPS,
        )  # fmt: skip


@triton.jit
def _add_squares(
    grads, fields, owners, partials, ACROSS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    TILES: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    owner = tl.load(owners + item)
    g = tensor_at(tl.load(grads + owner), DTYPE, ALIGNED)
    fields += owner * 4
    rows, cols = tl.load(fields + 1), tl.load(fields + 2)
    item -= tl.load(fields)
    row, row_stop, col, col_stop, num_tiles, _, partial = find_part(
        rows, cols, item, ACROSS, ROWS, COLS, TILES
    )
    dtype: tl.constexpr = partials.dtype.element_ty
    squares = tl.zeros((ROWS, COLS), dtype)
    for tile in range(num_tiles):
        offsets, there = find_tile(
            row, row_stop, col, col_stop, cols, tile, ACROSS, ROWS, COLS, ALIGNED
        )
        entries = tl.load(g + offsets, mask=there, other=0.0).to(dtype)
        squares += entries * entries
    partials += tl.load(fields + 3) + partial
    if ACROSS:
        c = tl.arange(0, COLS)
        tl.store(partials + c, tl.sum(squares, 0), mask=c < col_stop - col)
    else:
        r = tl.arange(0, ROWS)
        step = tl.cdiv(cols, COLS * TILES)  # sums of a row
        tl.store(partials + r * step, tl.sum(squares, 1), mask=r < row_stop - row)
