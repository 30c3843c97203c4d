"""Second moments of blocks and the denominators of their steps, from partial sums of squares."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_linf.kernels.numbers import joined, split

# Of each set of blocks, in this order. A block has ``splits`` times ``width`` partial sums: its
# ``width`` columns of each slab of ``cols`` columns.
FIELDS = (
    "first_item", "exp_avg_sq", "exp_avg_sq_step", "blocks", "size", "first_partial", "splits",
    "cols", "width", "first_denominator",
)  # fmt: skip
FEW = (256, 4)  # blocks, and partial sums of each that are read at once
MANY = (1, 1024)


def shape_for(partials: int) -> tuple[int, int]:
    """Choose how many blocks a program takes, by the number of partial sums of each."""
    return FEW if partials <= 4 * FEW[1] else MANY


class MomentOptions(NamedTuple):
    """What sets of blocks have in common: beta2, eps, and the count, or None to read it there."""

    beta2: float
    log_beta2: float
    eps: float
    is_inside: bool
    correction: float | None  # 1 - beta2 ** count


def update_moments(
    fields: Tensor,
    owners: Tensor,
    partials: Tensor,
    denominators: Tensor,
    shape: tuple[int, int],
    options: MomentOptions,
) -> None:
    """Update second moments, and write the denominators of the step.

    Args:
        fields: Numbers of each set, as ``FIELDS`` says, int64: (sets * fields,).
        owners: Number of the set of each item: (items,).
        partials: Sums of squares, which ``block_squares`` has written.
        denominators: Where the denominators go, in the dtype of the moments.
        shape: As :func:`shape_for` chooses it.
        options: Those of all these sets.
    """
    with torch.cuda.device_of(partials):
        _update_moments[(len(owners),)](
            fields, owners, partials, denominators, *split(options.beta2),
            *split(options.log_beta2), *split(options.eps), *split(options.correction or 0.0),
            COUNTS=options.correction is None, INSIDE=options.is_inside, BLOCKS=shape[0],
            PARTS=shape[1], num_warps=4,
        )  # fmt: skip


@triton.jit
def bias_correction(count, log_beta):
    """Compute ``1 - beta ** count`` in float64, of the count at an address."""
    steps = tl.load(count.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return 1.0 - tl.exp(steps * log_beta)


@triton.jit
def denominator_of(v, correction, eps, INSIDE: tl.constexpr):
    """Compute the denominator of a step, in the dtype of the second moments."""
    v_hat = v / correction.to(v.dtype)
    eps = eps.to(v.dtype)
    if INSIDE:
        denominator = tl.sqrt(v_hat + eps)
    else:
        denominator = tl.sqrt(v_hat) + eps
    return denominator


@triton.jit
def _update_moments(
    fields, owners, partials, denominators, beta2, beta2_low, log_beta2, log_beta2_low, eps,
    eps_low, correction, correction_low, COUNTS: tl.constexpr, INSIDE: tl.constexpr,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    owner = tl.load(owners + item)
    fields += owner * 10
    item -= tl.load(fields)
    dtype: tl.constexpr = partials.dtype.element_ty
    vs = tl.load(fields + 1).to(tl.pointer_type(dtype))
    num_blocks, size = tl.load(fields + 3), tl.load(fields + 4)
    splits, cols, width = tl.load(fields + 6), tl.load(fields + 7), tl.load(fields + 8)
    block = item * BLOCKS + tl.arange(0, BLOCKS)
    there = block < num_blocks
    groups = cols // width
    starts = tl.load(fields + 5) + block // groups * splits * cols + block % groups * width
    sums = tl.zeros((BLOCKS, PARTS), dtype)
    num_parts = splits * width
    for start in range(0, num_parts, PARTS):
        part = start + tl.arange(0, PARTS)
        offsets = starts[:, None] + (part // width * cols + part % width)[None, :]
        mask = there[:, None] & (part < num_parts)[None, :]
        sums += tl.load(partials + offsets, mask=mask, other=0.0)
    if COUNTS:
        corrected = bias_correction(tl.load(fields + 2), joined(log_beta2, log_beta2_low))
    else:
        corrected = joined(correction, correction_low)
    decay = joined(beta2, beta2_low)
    weight = ((1.0 - decay) / size.to(tl.float64)).to(dtype)
    v = tl.load(vs + block, mask=there, other=0.0) * decay.to(dtype) + weight * tl.sum(sums, 1)
    tl.store(vs + block, v, mask=there)
    denominator = denominator_of(v, corrected, joined(eps, eps_low), INSIDE)
    tl.store(denominators + tl.load(fields + 9) + block, denominator, mask=there)
