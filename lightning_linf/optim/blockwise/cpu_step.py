"""The step of blockwise Adam on the CPU, in few passes over memory.

Whole tensors make a step of torch's fused SGD. Rows are taken in chunks that stay in a cache: they
are updated where their norms have just been taken.
"""

import math
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from lightning_linf.optim.blockwise.step_inputs import StepInputs

_CHUNK = 2**20  # entries: rows of so many at a time stay in a large cache


def is_fused(inputs: StepInputs) -> bool:
    """Say whether these forms serve: contiguous tensors of one dtype, in blocks that are slices."""
    v, blocks = inputs.exp_avg_sq, inputs.blocks
    if not v.is_cpu or blocks.slices is None:
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
            return False  # 0: SGD without momentum
    return True


def fused_step(inputs: Sequence[StepInputs]) -> None:
    """Make the step on the CPU."""
    counts = [each.exp_avg_sq_step for each in inputs] + [s for each in inputs for s in each.steps]
    torch._foreach_add_(counts, torch.tensor(1.0))
    # Read at once: reading a number by itself costs as much as the step of a small tensor.
    numbers = torch.stack(counts).tolist()
    steps = iter(numbers[len(inputs) :])
    whole = []
    for each, count in zip(inputs, numbers, strict=False):
        own = [next(steps) for _ in each.steps]
        if each.blocks.is_whole:
            whole.append((each, count, own))
        elif each.blocks.is_identity and own == [count] and not each.options["eps_inside"]:
            _step_coordinates(each)
        else:
            _step_slices(each, count, own[0])
    if whole:
        _step_whole(whole)


def _step_coordinates(inputs: StepInputs) -> None:
    """Make the step where every entry is a block: that of torch's fused AdamW."""
    (p,), (g,), (m,), (group,) = inputs.params, inputs.grads, inputs.exp_avgs, inputs.groups
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        [p.view(-1)],
        [g.view(-1)],
        [m.view(-1)],
        [inputs.exp_avg_sq],
        [],
        inputs.steps,
        lr=float(group["lr"]),
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )


def _step_whole(counted: Sequence[tuple[StepInputs, float, list[float]]]) -> None:
    """Make the step of tensors that each lie in one block, as SGD with a rate of its own for each.

    Args:
        counted: Inputs, and numbers of updates of second moments and of parameters.
    """
    vs = torch.cat([each.exp_avg_sq for each, _, _ in counted]).tolist()
    norms = iter(torch.cat([norm for each, _, _ in counted for norm in _norms(each)]).tolist())
    for (each, count, steps), v in zip(counted, vs, strict=True):
        beta2, eps = each.options["betas"][1], each.options["eps"]
        num_norms = len(each.grads) if each.norms_over_ranks is None else 1
        squares = [norm * norm for norm in islice(norms, num_norms)]
        v = beta2 * v + (1 - beta2) * sum(squares) / each.size
        each.exp_avg_sq.fill_(v)
        v_hat = v / (1 - beta2**count)
        denominator = (v_hat + eps) ** 0.5 if each.options["eps_inside"] else v_hat**0.5 + eps
        for p, g, m, step, group in zip(
            each.params, each.grads, each.exp_avgs, steps, each.groups, strict=True
        ):
            lr, beta1 = float(group["lr"]), group["betas"][0]
            scale = denominator * (1 - beta1**step)
            keep = 1 - lr * group["weight_decay"]
            _sgd(p, g, m, lr / scale if scale else math.inf, beta1, keep, group["maximize"])


def _norms(inputs: StepInputs) -> list[Tensor]:
    if inputs.norms_over_ranks is not None:
        return [inputs.norms_over_ranks]
    return [inputs.blocks.norms(g, inputs.exp_avg_sq.dtype) for g in inputs.grads]


def _sgd(
    p: Tensor, g: Tensor, m: Tensor, lr: float, beta1: float, keep: float, maximize: bool
) -> None:
    """Multiply a parameter by ``keep`` and move it along the mean gradient."""
    if keep != 1:
        p.mul_(keep)
    torch._fused_sgd_(  # torch.optim.SGD has one learning rate for all tensors of a group
        [p],
        [g],
        [m],
        lr=lr,
        momentum=beta1,
        dampening=beta1,
        weight_decay=0.0,
        nesterov=False,
        maximize=maximize,
        is_first_step=False,
    )


def _step_slices(inputs: StepInputs, count: float, step: float) -> None:
    """Make the step of one tensor with several blocks, by chunks of rows."""
    (p,), (g,), (m,), (group,) = inputs.params, inputs.grads, inputs.exp_avgs, inputs.groups
    blocks, parts, v = inputs.blocks, inputs.blocks.slices, inputs.exp_avg_sq
    assert parts is not None  # is_fused says so
    lr, beta1 = float(group["lr"]), group["betas"][0]
    size, keep = -lr / (1 - beta1**step), 1 - lr * group["weight_decay"]
    slabs, rows, cols = parts.matrix
    factors = None
    if parts.is_across or inputs.norms_over_ranks is not None:
        (norms,) = _norms(inputs)
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
