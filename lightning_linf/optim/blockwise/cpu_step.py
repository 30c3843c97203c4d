"""Forms of the step of blockwise Adam on the CPU that need few passes over memory."""

from collections.abc import Callable

import torch

from lightning_linf.optim.blockwise.cpu_coordinate_step import CoordinateStep
from lightning_linf.optim.blockwise.cpu_slice_step import SliceStep
from lightning_linf.optim.blockwise.cpu_whole_step import WholeStep
from lightning_linf.optim.blockwise.step_inputs import StepInputs

_DTYPES = {torch.float32, torch.float64}  # torch's kernels round others, by up to 15 % of a step


def cpu_form(inputs: StepInputs) -> Callable[[list[StepInputs]], Callable[[], None]] | None:
    """Choose a form for a block set; None unless its tensors are contiguous and of one dtype."""
    if inputs.options["capturable"] or not _serves(inputs):
        return None
    if inputs.blocks.is_whole:
        return WholeStep
    return CoordinateStep if inputs.blocks.is_identity else SliceStep


def _serves(inputs: StepInputs) -> bool:
    v = inputs.exp_avg_sq
    if not v.is_cpu or inputs.blocks.slices is None or v.dtype not in _DTYPES:
        return False
    for p, g, m in zip(inputs.params, inputs.grads, inputs.exp_avgs, strict=True):
        if not (p.is_cpu and p.dtype == g.dtype == m.dtype == v.dtype):
            return False
        if not (p.shape == g.shape == m.shape):  # which torch's kernels do not check
            return False
        if not (p.is_contiguous() and g.is_contiguous() and m.is_contiguous()):
            return False
    return True
