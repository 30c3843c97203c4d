"""The step of blockwise Adam on the CPU for tensors that hold several blocks, in few passes.

Rows are taken in chunks that stay in a cache: they are updated where their norms have just been
taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_linf.optim.blockwise.counts import Counts
from lightning_linf.optim.blockwise.step_inputs import StepInputs

_CHUNK = 2**20  # entries: rows of so many at a time stay in a large cache


class SliceStep:
    """The step of block sets of one tensor each."""

    def __init__(self, inputs: Sequence[StepInputs]) -> None:
        self._inputs, self._counts = inputs, Counts(inputs)

    def __call__(self) -> None:
        """Make the step."""
        numbers = self._counts.incremented()
        self._counts.write()
        for each, count, step in zip(
            self._inputs, numbers, numbers[len(self._inputs) :], strict=False
        ):
            step_slices(each, count, step)


def step_slices(inputs: StepInputs, count: float, step: float) -> None:
    """Make the step of one tensor with several blocks, by chunks of rows."""
    (p,), (g,), (m,), (group,) = inputs.params, inputs.grads, inputs.exp_avgs, inputs.groups
    blocks, parts, v = inputs.blocks, inputs.blocks.slices, inputs.exp_avg_sq
    assert parts is not None  # cpu_form says so
    lr, beta1 = float(group["lr"]), group["betas"][0]
    size, keep = -lr / (1 - beta1**step), 1 - lr * group["weight_decay"]
    slabs, rows, cols = parts.matrix
    factors = None
    if parts.is_across or inputs.norms_over_ranks is not None:
        norms = inputs.norms_over_ranks
        if norms is None:
            norms = blocks.norms(g, v.dtype)
        factors = blocks.local(_factors(inputs, v, norms, count, size))
        factors = factors.view((slabs, parts.groups, 1) if parts.is_across else (1, -1, 1))
    shape = (slabs, rows, parts.groups, parts.width) if parts.is_across else (1, rows, cols)
    views = [t.view(shape) for t in (p, g, m)]
    num_rows = max(1, _CHUNK // max(1, cols))
    for slab in range(shape[0]):
        for start in range(0, rows, num_rows):
            chunk = slice(start, start + num_rows)
            p_part, g_part, m_part = (t[slab, chunk] for t in views)
            if factors is None:  # where g is in the cache
                norms = torch.linalg.vector_norm(g_part, dim=1)
                factor = _factors(inputs, v[chunk], norms, count, size).view(-1, 1)
            else:
                factor = factors[slab] if parts.is_across else factors[0, chunk]
            if keep != 1:
                p_part.mul_(keep)
            m_part.lerp_(-g_part if group["maximize"] else g_part, 1 - beta1)
            p_part.addcmul_(m_part, factor)


def _factors(inputs: StepInputs, v: Tensor, norms: Tensor, count: float, size: float) -> Tensor:
    """Update second moments of blocks, and give what their first moments are multiplied by."""
    beta2, eps = inputs.options["betas"][1], inputs.options["eps"]
    v.mul_(beta2).addcmul_(norms, norms, value=(1 - beta2) / inputs.size)
    v_hat = v / (1 - beta2**count)
    if inputs.options["eps_inside"]:
        denominators = v_hat.add_(eps).sqrt_()
    else:
        denominators = v_hat.sqrt_().add_(eps)
    factors: Tensor = denominators.reciprocal_().mul_(size)
    return factors
