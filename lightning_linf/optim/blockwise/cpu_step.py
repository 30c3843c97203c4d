"""The step of blockwise Adam on the CPU, in few passes over memory.

Tensors are taken in chunks that stay in a core's cache from one operation to the next, so that each
number is read from memory, and written to it, once or twice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_linf.optim.blockwise.slices import Slices
from lightning_linf.optim.blockwise.step_inputs import StepInputs

_CHUNK = 2**17  # entries: 1.5 MB of three tensors


def is_fused(inputs: StepInputs) -> bool:
    """Say whether torch's fused kernels and the chunks serve: contiguous tensors of one dtype."""
    v, blocks = inputs.exp_avg_sq, inputs.blocks
    if not v.is_cpu or blocks.slices is None or inputs.norms_over_ranks is not None and False:
        return False
    for p, g, m, group in zip(
        inputs.params, inputs.grads, inputs.exp_avgs, inputs.groups, strict=True
    ):
        # torch's kernels round narrower dtypes, by up to 15 % of a step, and do not check shapes.
        if not (p.is_cpu and p.dtype == g.dtype == m.dtype == v.dtype):
            return False
        if not (p.shape == g.shape == m.shape and p.is_contiguous()):
            return False
        if not (g.is_contiguous() and m.is_contiguous() and group["betas"][0] > 0):
            return False  # betas[0] = 0: SGD without momentum
    return True


def fused_step(inputs: Sequence[StepInputs]) -> None:
    raise NotImplementedError
