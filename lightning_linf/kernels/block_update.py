"""The second pass of a blockwise step: first moments and parameters, everything moved once.

Where every entry is a block there is no first pass: second moments are updated here, too.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_linf.kernels.block_moments import MomentOptions, bias_correction, denominator_of
from lightning_linf.kernels.numbers import joined, split, triton_dtype
from lightning_linf.kernels.tiles import (
    NUM_TILES,
    NUM_WARPS,
    Tiling,
    find_part,
    find_tile,
    tensor_at,
)

# Of each tensor, in this order. ``labels``: address of the numbers of its blocks among all that
# have a denominator, or 0 if they follow each other; ``width``: columns of a block, across.
FIELDS = ("first_item", "rows", "cols", "p", "m", "step", "first_denominator", "width", "labels")
# The same where every entry is a block.
COORDINATE_FIELDS = ("first_item", "rows", "cols", "p", "m", "step", "v", "exp_avg_sq_step")


class Dtypes(NamedTuple):
    """The dtypes of parameters, gradients and first moments."""

    p: torch.dtype
    g: torch.dtype
    m: torch.dtype

    def arguments(self) -> dict[str, tl.dtype]:
        """Give them as arguments of a kernel."""
        return {name.upper(): triton_dtype(dtype) for name, dtype in self._asdict().items()}


class ParamOptions(NamedTuple):
    """What the tensors of a launch have in common."""

    lr: float | Tensor  # a tensor is read by the kernel
    weight_decay: float
    beta1: float
    log_beta1: float
    maximize: bool
    correction: float | None  # 1 - beta1 ** step, or None to read the step of each tensor

    def arguments(self, filler: Tensor) -> dict[str, Any]:
        """Give them as arguments of a kernel; ``filler`` is any tensor."""
        is_tensor = isinstance(self.lr, Tensor)
        numbers = {
            "lr": 0.0 if isinstance(self.lr, Tensor) else float(self.lr),
            "weight_decay": self.weight_decay,
            "beta1": self.beta1,
            "log_beta1": self.log_beta1,
            "correction": self.correction or 0.0,
        }
        arguments: dict[str, Any] = {"lr_tensor": self.lr if is_tensor else filler}
        for name, number in numbers.items():
            arguments[name], arguments[f"{name}_low"] = split(number)
        return {
            **arguments,
            "LR_TENSOR": is_tensor,
            "COUNTS": self.correction is None,
            "DECAYS": self.weight_decay != 0,
            "MAXIMIZE": self.maximize,
        }


def update_params(
    grads: Tensor,
    fields: Tensor,
    owners: Tensor,
    denominators: Tensor,
    tiles: Tiling,
    dtypes: Dtypes,
    is_aligned: bool,
    options: ParamOptions,
) -> None:
    """Update first moments and parameters of tensors that have tiles, dtypes and options in common.

    Args:
        grads: Addresses of the gradients, int64: (tensors,).
        fields: Their numbers, as ``FIELDS`` says, int64: (tensors * fields,).
        owners: Number of the tensor of each item: (items,).
        denominators: What ``block_moments`` has written.
        tiles: The shape of tiles.
        dtypes: Those of the tensors.
        is_aligned: Whether all rows begin and end at multiples of 16 bytes.
        options: Those of all these tensors.
    """
    with torch.cuda.device_of(denominators):
        _update_params[(len(owners),)](
            grads, fields, owners, denominators, **options.arguments(denominators),
            ACROSS=tiles.is_across, ROWS=tiles.rows, COLS=tiles.cols, TILES=NUM_TILES,
            ALIGNED=is_aligned, **dtypes.arguments(), num_warps=NUM_WARPS,
        )  # fmt: skip


def update_coordinates(
    grads: Tensor,
    fields: Tensor,
    owners: Tensor,
    dtype: torch.dtype,
    tiles: Tiling,
    dtypes: Dtypes,
    is_aligned: bool,
    options: ParamOptions,
    moments: MomentOptions,
) -> None:
    """Make the step of tensors whose every entry is a block.

    Arguments are those of :func:`update_params`, but for ``fields``, which are of
    ``COORDINATE_FIELDS``, and ``dtype``, that of the second moments.
    """
    with torch.cuda.device_of(grads):
        _update_coordinates[(len(owners),)](
            grads, fields, owners, *split(moments.beta2), *split(moments.log_beta2),
            *split(moments.eps), *split(moments.correction or 0.0), **options.arguments(grads),
            INSIDE=moments.is_inside, ROWS=tiles.rows, COLS=tiles.cols, TILES=NUM_TILES,
            ALIGNED=is_aligned, DTYPE=triton_dtype(dtype), **dtypes.arguments(),
            num_warps=NUM_WARPS,
        )  # fmt: skip


@triton.jit
def decayed_lr(lr_tensor, lr, lr_low, weight_decay, weight_decay_low, LR_TENSOR: tl.constexpr):
    """Give the learning rate, and what parameters keep of themselves, in float64."""
    if LR_TENSOR:
        rate = tl.load(lr_tensor).to(tl.float64)
    else:
        rate = joined(lr, lr_low)
    return rate, 1.0 - rate * joined(weight_decay, weight_decay_low)


@triton.jit
def interpolated(m, g, weight, MAXIMIZE: tl.constexpr):
    """Move a running mean towards the gradient, by the two formulas of ``torch.lerp``."""
    if MAXIMIZE:
        g = -g
    return tl.where(weight < 0.5, m + weight * (g - m), g - (g - m) * (1.0 - weight))


@triton.jit
def _update_params(
    grads, fields, owners, denominators, lr_tensor, lr, lr_low, weight_decay, weight_decay_low,
    beta1, beta1_low, log_beta1, log_beta1_low, correction, correction_low,
    LR_TENSOR: tl.constexpr, COUNTS: tl.constexpr, DECAYS: tl.constexpr, MAXIMIZE: tl.constexpr,
    ACROSS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TILES: tl.constexpr,
    ALIGNED: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    owner = tl.load(owners + item)
    fields += owner * 9
    item -= tl.load(fields)
    rows, cols = tl.load(fields + 1), tl.load(fields + 2)
    gs = tensor_at(tl.load(grads + owner), G, ALIGNED)
    ps = tensor_at(tl.load(fields + 3), P, ALIGNED)
    ms = tensor_at(tl.load(fields + 4), M, ALIGNED)
    dtype: tl.constexpr = denominators.dtype.element_ty
    rate, kept = decayed_lr(lr_tensor, lr, lr_low, weight_decay, weight_decay_low, LR_TENSOR)
    if COUNTS:
        corrected = bias_correction(tl.load(fields + 5), joined(log_beta1, log_beta1_low))
    else:
        corrected = joined(correction, correction_low)
    step_size = (rate / corrected).to(dtype)
    weight = (1.0 - joined(beta1, beta1_low)).to(dtype)
    row, row_stop, col, col_stop, num_tiles, slab, _ = find_part(
        rows, cols, item, ACROSS, ROWS, COLS, TILES
    )
    if ACROSS:
        c = col + tl.arange(0, COLS)
        width = tl.load(fields + 7)
        block, known = slab * (cols // width) + c // width, c < col_stop
    else:
        block = row + tl.arange(0, ROWS)
        known = block < row_stop
    labels = tl.load(fields + 8)
    if labels != 0:
        block = tl.load(labels.to(tl.pointer_type(tl.int64)) + block, mask=known, other=0)
    denominator = tl.load(denominators + tl.load(fields + 6) + block, mask=known, other=1.0)
    if ACROSS:
        denominator = denominator[None, :]
    else:
        denominator = denominator[:, None]
    for tile in range(num_tiles):
        offsets, there = find_tile(
            row, row_stop, col, col_stop, cols, tile, ACROSS, ROWS, COLS, ALIGNED
        )
        g = tl.load(gs + offsets, mask=there, other=0.0).to(dtype)
        m = tl.load(ms + offsets, mask=there, other=0.0).to(dtype)
        p = tl.load(ps + offsets, mask=there, other=0.0).to(dtype)
        if DECAYS:  # rounded between, as by separate operations
            p = (p * kept.to(dtype)).to(P).to(dtype)
        m = interpolated(m, g, weight, MAXIMIZE).to(M)
        tl.store(ms + offsets, m, mask=there)
        p -= step_size * (m.to(dtype) / denominator)
        tl.store(ps + offsets, p.to(P), mask=there)


@triton.jit
def _update_coordinates(
    grads, fields, owners, beta2, beta2_low, log_beta2, log_beta2_low, eps, eps_low, correction2,
    correction2_low, lr_tensor, lr, lr_low, weight_decay, weight_decay_low, beta1, beta1_low,
    log_beta1, log_beta1_low, correction, correction_low, LR_TENSOR: tl.constexpr,
    COUNTS: tl.constexpr, DECAYS: tl.constexpr, MAXIMIZE: tl.constexpr, INSIDE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TILES: tl.constexpr, ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    owner = tl.load(owners + item)
    fields += owner * 8
    item -= tl.load(fields)
    rows, cols = tl.load(fields + 1), tl.load(fields + 2)
    gs = tensor_at(tl.load(grads + owner), G, ALIGNED)
    ps = tensor_at(tl.load(fields + 3), P, ALIGNED)
    ms = tensor_at(tl.load(fields + 4), M, ALIGNED)
    vs = tensor_at(tl.load(fields + 6), DTYPE, ALIGNED)
    rate, kept = decayed_lr(lr_tensor, lr, lr_low, weight_decay, weight_decay_low, LR_TENSOR)
    if COUNTS:
        corrected = bias_correction(tl.load(fields + 5), joined(log_beta1, log_beta1_low))
        corrected2 = bias_correction(tl.load(fields + 7), joined(log_beta2, log_beta2_low))
    else:
        corrected = joined(correction, correction_low)
        corrected2 = joined(correction2, correction2_low)
    step_size = (rate / corrected).to(DTYPE)
    weight = (1.0 - joined(beta1, beta1_low)).to(DTYPE)
    decay = joined(beta2, beta2_low)
    row, row_stop, col, col_stop, num_tiles, _, _ = find_part(
        rows, cols, item, False, ROWS, COLS, TILES
    )
    for tile in range(num_tiles):
        offsets, there = find_tile(
            row, row_stop, col, col_stop, cols, tile, False, ROWS, COLS, ALIGNED
        )
        g = tl.load(gs + offsets, mask=there, other=0.0).to(DTYPE)
        m = tl.load(ms + offsets, mask=there, other=0.0).to(DTYPE)
        v = tl.load(vs + offsets, mask=there, other=1.0)
        p = tl.load(ps + offsets, mask=there, other=0.0).to(DTYPE)
        v = v * decay.to(DTYPE) + (1.0 - decay).to(DTYPE) * g * g
        tl.store(vs + offsets, v, mask=there)
        if DECAYS:
            p = (p * kept.to(DTYPE)).to(P).to(DTYPE)
        m = interpolated(m, g, weight, MAXIMIZE).to(M)
        tl.store(ms + offsets, m, mask=there)
        p -= step_size * (m.to(DTYPE) / denominator_of(v, corrected2, joined(eps, eps_low), INSIDE))
        tl.store(ps + offsets, p.to(P), mask=there)
