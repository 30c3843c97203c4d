"""The step of blockwise Adam on the CPU for tensors that each lie in one block, in three passes.

One reads the gradient for its sum of squares, and one updates the first moment. The last moves the
parameter: that of torch's fused SGD, which takes weight decay along.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.optim.blockwise.counts import Counts
from lightning_linf.optim.blockwise.step_inputs import StepInputs

_CHUNK = 2**16  # squares added up at once: one float32 sum of 3e7 loses up to 0.3 %
_PART = 2**19  # entries: parts of large tensors, whose moments stay in a cache from pass to pass
_MAX_PULL = 1e30  # above it, its product with a parameter might be infinite


class WholeStep:
    """The step of block sets of one block each."""

    def __init__(self, inputs: Sequence[StepInputs]) -> None:
        self._inputs, self._counts = inputs, Counts(inputs)
        self._sizes = [each.size for each in inputs]

    def __call__(self) -> None:
        """Make the step."""
        numbers = self._counts.incremented()
        self._counts.write()
        steps = iter(numbers[len(self._inputs) :])
        for each, size, count in zip(self._inputs, self._sizes, numbers, strict=False):
            grads = each.grads
            if each.norms_over_ranks is None:
                mean = sum([_sum_of_squares(g) for g in grads]) / size
            else:
                mean = each.norms_over_ranks.item() ** 2
            denominator = _denominator(each, mean, count)
            for p, g, m, group in zip(each.params, grads, each.exp_avgs, each.groups, strict=True):
                _update(p, g, m, denominator, next(steps), group)


def _sum_of_squares(g: Tensor) -> float:
    flat, size = g.view(-1), g.numel()
    if size <= _CHUNK:
        return float(torch.dot(flat, flat))
    num_chunked = size // _CHUNK * _CHUNK
    norms: Tensor = torch.linalg.vector_norm(flat[:num_chunked].view(-1, _CHUNK), dim=1)
    rest = flat[num_chunked:]
    return float(torch.dot(rest, rest)) + float(sum([norm * norm for norm in norms.tolist()]))


def _denominator(inputs: StepInputs, mean: float, count: float) -> float:
    """Update the second moment, and give what steps are divided by."""
    options, v = inputs.options, inputs.exp_avg_sq
    beta2, eps = options["betas"][1], options["eps"]
    moment = beta2 * v.item() + (1 - beta2) * mean
    v.fill_(moment)
    v_hat = moment / (1 - beta2**count)
    return float((v_hat + eps) ** 0.5 if options["eps_inside"] else v_hat**0.5 + eps)


def _update(
    p: Tensor, g: Tensor, m: Tensor, denominator: float, step: float, group: dict[str, Any]
) -> None:
    """Update the first moment, and move the parameter along it."""
    lr, decay, beta1 = float(group["lr"]), group["weight_decay"], group["betas"][0]
    scale = denominator * (1 - beta1**step)
    rate = lr / scale if scale else math.inf
    pull = decay * scale if lr else 0.0  # so that decay is a part of the step: rate (m + pull p)
    if not pull < _MAX_PULL:
        p.mul_(1 - lr * decay)
        pull = 0.0
    parts = [(p, g, m)]
    if p.numel() > _PART:
        flat = (torch.split(t.view(-1), _PART) for t in (p, g, m))
        parts = list(zip(*flat, strict=True))
    for p_part, g_part, m_part in parts:
        m_part.lerp_(-g_part if group["maximize"] else g_part, 1 - beta1)
        torch._fused_sgd_(  # torch.optim.SGD has one learning rate for all tensors of a group
            [p_part], [m_part], [], lr=rate, momentum=0.0, dampening=0.0, weight_decay=pull,
            nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip
