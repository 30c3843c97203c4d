"""One step of blockwise Adam in three forms that torch's optimizers have, too.

The plain form goes tensor by tensor; the multi-tensor form needs few calls; the fused form needs
few passes over memory. Their results differ by rounding only.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.optim.blockwise.step_inputs import StepInputs, group_alike, norms


def step_form(inputs: StepInputs) -> Callable[[list[StepInputs]], None]:
    """Choose the form of the step for a block set."""
    foreach = inputs.options["foreach"]
    if foreach or (foreach is None and inputs.exp_avg_sq.is_cuda):
        return multi_tensor_step
    is_traced = torch.compiler.is_compiling()  # the fused form reads numbers, a break in the graph
    is_whole, is_capturable = inputs.blocks.is_whole, inputs.options["capturable"]
    if foreach is False or is_traced or not is_whole or is_capturable:
        return single_tensor_step
    dtype = inputs.exp_avg_sq.dtype  # torch's kernel rounds narrower ones, by up to 15 % of a step
    for p, g, m, group in zip(
        inputs.params, inputs.grads, inputs.exp_avgs, inputs.groups, strict=True
    ):
        contiguous = p.is_contiguous() and g.is_contiguous() and m.is_contiguous()
        alike = p.is_cpu and p.dtype == g.dtype == m.dtype == dtype
        alike = alike and p.shape == g.shape == m.shape  # which torch's kernel does not check
        if not (contiguous and alike and group["betas"][0] > 0):  # 0: SGD without momentum
            return single_tensor_step
    return fused_step


def single_tensor_step(inputs: Sequence[StepInputs]) -> None:
    """Make the step tensor by tensor, as the formulas are written."""
    for each in inputs:
        beta2, eps, v = each.options["betas"][1], each.options["eps"], each.exp_avg_sq
        block_norms = each.norms_over_ranks
        if block_norms is None:
            found = [each.blocks.norms(g, v.dtype) for g in each.grads]
            block_norms = each.blocks.joint_norms(found, v)
        each.exp_avg_sq_step.add_(1)
        v.mul_(beta2).addcmul_(block_norms, block_norms, value=(1 - beta2) / each.size)
        v_hat = v / _bias_correction(beta2, each.exp_avg_sq_step, each.options)
        if each.options["eps_inside"]:
            denominator = v_hat.add_(eps).sqrt_()
        else:
            denominator = v_hat.sqrt_().add_(eps)
        for p, g, m, step, group in zip(
            each.params, each.grads, each.exp_avgs, each.steps, each.groups, strict=True
        ):
            lr, beta1 = group["lr"], group["betas"][0]
            step += 1
            if group["weight_decay"] != 0:
                p.mul_(1 - lr * group["weight_decay"])
            m.lerp_(-g if group["maximize"] else g, 1 - beta1)
            step_size = lr / _bias_correction(beta1, step, group)
            scaled = denominator
            if isinstance(step_size, Tensor):  # which addcdiv_ does not take as `value`
                scaled, step_size = denominator / step_size, 1.0
            p_view, m_view, scaled = each.blocks.aligned(p, m, scaled)
            p_view.addcdiv_(m_view, scaled, value=-step_size)


def multi_tensor_step(inputs: Sequence[StepInputs]) -> None:
    """Make the step with calls that each update many tensors.

    These are the ``torch._foreach`` functions that torch's own optimizers use; they have no public
    form.
    """
    for counts in (
        [each.exp_avg_sq_step for each in inputs],
        [step for each in inputs for step in each.steps],
    ):
        torch._foreach_add_(counts, _number(1.0, counts[0]))
    members: dict[Any, list[tuple[StepInputs, int, Tensor]]] = defaultdict(list)
    for alike in group_alike(inputs):
        _update_exp_avg_sqs(alike)
        for each, denominator in zip(alike, _denominators(alike), strict=True):
            for place, (p, group) in enumerate(zip(each.params, each.groups, strict=True)):
                members[id(group), p.device, p.dtype].append((each, place, denominator))
    for group_members in members.values():
        _update_params(group_members)


def fused_step(inputs: Sequence[StepInputs]) -> None:
    """Make the step on the CPU, for tensors that each lie in one block, by torch's fused SGD.

    Once its second moment is known, such a tensor makes a step of SGD with momentum and a learning
    rate of its own; the fused kernel reads and writes everything once.
    """
    counts = [each.exp_avg_sq_step for each in inputs] + [s for each in inputs for s in each.steps]
    torch._foreach_add_(counts, _number(1.0, counts[0]))
    for alike in group_alike(inputs):
        _update_exp_avg_sqs(alike)
    # Read at once: reading a number by itself costs as much as the step of a small tensor.
    second_moments = torch.cat([each.exp_avg_sq for each in inputs]).tolist()
    numbers = torch.stack(counts).tolist()
    v_steps, steps = numbers[: len(inputs)], iter(numbers[len(inputs) :])
    for each, v, v_step in zip(inputs, second_moments, v_steps, strict=True):
        eps = each.options["eps"]
        v_hat = v / (1 - each.options["betas"][1] ** v_step)
        denominator = (v_hat + eps) ** 0.5 if each.options["eps_inside"] else v_hat**0.5 + eps
        for p, g, m, group in zip(each.params, each.grads, each.exp_avgs, each.groups, strict=True):
            lr, beta1 = float(group["lr"]), group["betas"][0]
            if group["weight_decay"] != 0:
                p.mul_(1 - lr * group["weight_decay"])
            scale = denominator * (1 - beta1 ** next(steps))
            torch._fused_sgd_(  # torch.optim.SGD has one learning rate for all tensors of a group
                [p],
                [g],
                [m],
                lr=lr / scale if scale else math.inf,
                momentum=beta1,
                dampening=beta1,
                weight_decay=0.0,
                nesterov=False,
                maximize=group["maximize"],
                is_first_step=False,
            )


def _update_exp_avg_sqs(inputs: Sequence[StepInputs]) -> None:
    """Update the second moments of inputs that are alike."""
    beta2 = inputs[0].options["betas"][1]
    vs = [each.exp_avg_sq for each in inputs]
    block_norms = norms(inputs)
    weights = [(1 - beta2) / each.size for each in inputs]
    torch._foreach_mul_(vs, _number(beta2, vs[0]))
    torch._foreach_addcmul_(vs, block_norms, block_norms, weights)


def _denominators(inputs: Sequence[StepInputs]) -> Sequence[Tensor]:
    """Compute the roots of corrected second moments of inputs that are alike, each (blocks,)."""
    options = inputs[0].options
    corrections = [
        _bias_correction(options["betas"][1], each.exp_avg_sq_step, options) for each in inputs
    ]
    v_hats = torch._foreach_div([each.exp_avg_sq for each in inputs], corrections)
    if options["eps_inside"]:
        torch._foreach_add_(v_hats, options["eps"])
    torch._foreach_sqrt_(v_hats)
    if not options["eps_inside"]:
        torch._foreach_add_(v_hats, options["eps"])
    return v_hats


def _update_params(members: list[tuple[StepInputs, int, Tensor]]) -> None:
    """Update first moments and parameters of one parameter group, device and dtype.

    Each member is the inputs of a block set, the place of a parameter in it, and the denominator.
    """
    each, place, _ = members[0]
    group = each.groups[place]
    lr, beta1 = group["lr"], group["betas"][0]
    params = [each.params[place] for each, place, _ in members]
    grads = [each.grads[place] for each, place, _ in members]
    exp_avgs = [each.exp_avgs[place] for each, place, _ in members]
    if group["weight_decay"] != 0:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    corrections = [_bias_correction(beta1, each.steps[place], group) for each, place, _ in members]
    factors = torch._foreach_mul([denominator for _, _, denominator in members], corrections)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, -lr)
    views = [
        each.blocks.aligned(p, m, factor)
        for (each, _, _), p, m, factor in zip(members, params, exp_avgs, factors, strict=True)
    ]
    torch._foreach_addcmul_(*map(list, zip(*views, strict=True)))


def _bias_correction(beta: float, step: Tensor, group: dict[str, Any]) -> Any:
    """Compute ``1 - beta ** step``: as a number, or as a tensor if the group is capturable."""
    if not group["capturable"]:
        return 1 - beta ** step.item()
    return 1 - beta ** step.to(wide_dtype(step))  # float32 has 1 - 0.999 to 5 digits only


def _number(value: float, like: Tensor) -> Any:
    # On the CPU, foreach functions would turn a number into a tensor again for each tensor.
    return torch.tensor(value, dtype=like.dtype) if like.is_cpu else value
