"""The step of Signum for many tensors, everything moved once: five numbers for each entry."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_linf.kernels.block_update import Dtypes, decayed_lr, interpolated
from lightning_linf.kernels.numbers import joined, split
from lightning_linf.kernels.tensor_table import owners_of_items, table_of
from lightning_linf.kernels.tiles import (
    NUM_TILES,
    NUM_WARPS,
    WHOLE,
    find_part,
    find_tile,
    tensor_at,
)


class SignumLaunch:
    """The step of tensors of one device and one dtype each, which stay where they are.

    A tensor, its gradient and its mean gradient must have the same strides, without gaps.
    """

    def __init__(self, params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor]) -> None:
        self._device = params[0].device
        self._dtypes = Dtypes(params[0].dtype, grads[0].dtype, exp_avgs[0].dtype)
        sizes = [p.numel() for p in params]
        self._num_items = tuple([WHOLE.num_items(1, 1, size) for size in sizes])
        first = 0
        fields: list[int] = []
        for p, m, size, count in zip(params, exp_avgs, sizes, self._num_items, strict=True):
            fields += (first, size, p.data_ptr(), m.data_ptr())
            first += count
        self._fields, self._num_programs = tuple(fields), first
        addresses = [t.data_ptr() for t in (*params, *exp_avgs)]
        self._is_aligned = all(number % 16 == 0 for number in (*sizes, *addresses))

    def __call__(self, grads: list[Tensor], group: dict[str, Any]) -> None:
        """Launch it with a group's options."""
        if not self._num_programs:
            return
        lr, device = group["lr"], self._device
        is_tensor = isinstance(lr, Tensor) and lr.device == device
        addresses = [g.data_ptr() for g in grads]
        table, dtypes = table_of(self._fields, device), self._dtypes
        with torch.cuda.device_of(table):
            _signum[(self._num_programs,)](
                table_of(addresses, device), table, owners_of_items(self._num_items, device),
                lr if is_tensor else table, *split(0.0 if is_tensor else float(lr)),
                *split(group["weight_decay"]), *split(group["momentum"]), LR_TENSOR=is_tensor,
                DECAYS=group["weight_decay"] != 0, MAXIMIZE=group["maximize"], ROWS=WHOLE.rows,
                COLS=WHOLE.cols, TILES=NUM_TILES,
                ALIGNED=self._is_aligned and not any([address % 16 for address in addresses]),
                DTYPE=tl.float64 if torch.float64 in dtypes else tl.float32, **dtypes.arguments(),
                num_warps=NUM_WARPS,
            )  # fmt: skip


@triton.jit
def _signum(
    grads, fields, owners, lr_tensor, lr, lr_low, weight_decay, weight_decay_low, momentum,
    momentum_low, LR_TENSOR: tl.constexpr, DECAYS: tl.constexpr, MAXIMIZE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TILES: tl.constexpr, ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    owner = tl.load(owners + item)
    fields += owner * 4
    item -= tl.load(fields)
    rows, cols = item * 0 + 1, tl.load(fields + 1)
    gs = tensor_at(tl.load(grads + owner), G, ALIGNED)
    ps = tensor_at(tl.load(fields + 2), P, ALIGNED)
    ms = tensor_at(tl.load(fields + 3), M, ALIGNED)
    rate, kept = decayed_lr(lr_tensor, lr, lr_low, weight_decay, weight_decay_low, LR_TENSOR)
    weight = (1.0 - joined(momentum, momentum_low)).to(DTYPE)
    row, row_stop, col, col_stop, num_tiles, _, _ = find_part(
        rows, cols, item, False, ROWS, COLS, TILES
    )
    for tile in range(num_tiles):
        offsets, there = find_tile(
            row, row_stop, col, col_stop, cols, tile, False, ROWS, COLS, ALIGNED
        )
        g = tl.load(gs + offsets, mask=there, other=0.0).to(DTYPE)
        m = tl.load(ms + offsets, mask=there, other=0.0).to(DTYPE)
        p = tl.load(ps + offsets, mask=there, other=0.0).to(DTYPE)
        m = interpolated(m, g, weight, MAXIMIZE).to(M)
        tl.store(ms + offsets, m, mask=there)
        if DECAYS:
            p = (p * kept.to(DTYPE)).to(P).to(DTYPE)
        m = m.to(DTYPE)
        sign = tl.where(m > 0, 1.0, tl.where(m < 0, -1.0, 0.0)) + 0.0 * m  # keeps a NaN
        p -= (rate.to(DTYPE) * sign).to(M).to(DTYPE)
        tl.store(ps + offsets, p.to(P), mask=there)
