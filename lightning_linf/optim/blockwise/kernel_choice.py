"""Whether kernels can make the step of a block set."""

import torch
from torch import Tensor

from lightning_linf.kernels import runs_kernels
from lightning_linf.optim.blockwise.step_inputs import StepInputs

_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def has_kernels(inputs: StepInputs) -> bool:
    """Say so for blocks that are slices, of tensors on one device without gaps between entries."""
    v, blocks = inputs.exp_avg_sq, inputs.blocks
    if not runs_kernels(v.device) or blocks.slices is None:
        return False
    count = inputs.exp_avg_sq_step
    if count.device != (v.device if inputs.options["capturable"] else torch.device("cpu")):
        return False
    for p, m, g, step, group in zip(
        inputs.params, inputs.exp_avgs, inputs.grads, inputs.steps, inputs.groups, strict=True
    ):
        if not p.device == m.device == g.device == v.device:
            return False
        if not _DTYPES.issuperset((p.dtype, m.dtype, g.dtype)):
            return False
        if not (p.is_contiguous() and m.is_contiguous()):
            if not (blocks.is_whole and _is_dense_alike(p, m)):  # as one block, in any order
                return False
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type != "cpu" and lr.device != v.device:
            return False
        if step.device != count.device:
            return False
    return True


def _is_dense_alike(p: Tensor, m: Tensor) -> bool:
    is_dense: bool = torch.ops.aten.is_non_overlapping_and_dense.default(p)
    return is_dense and p.stride() == m.stride()
