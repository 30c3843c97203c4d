"""One step of blockwise Adam, in the forms that there are; their results differ by rounding only.

The plain form is the one to read. On GPUs kernels make the step (``kernel_step.py``), and on the
CPU the forms of ``cpu_step.py``, which need few passes over memory.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.optim.blockwise.cpu_step import cpu_form
from lightning_linf.optim.blockwise.kernel_choice import has_kernels
from lightning_linf.optim.blockwise.step_inputs import StepInputs

Form: TypeAlias = Callable[[list[StepInputs]], Callable[[], None]]


def updates(inputs: Sequence[StepInputs]) -> list[Callable[[], None]]:
    """Give the calls that make the step: one for all block sets that take the same form."""
    inputs_of: dict[Form, list[StepInputs]] = defaultdict(list)
    for each in inputs:
        inputs_of[_form(each)].append(each)
    return [form(alike) for form, alike in inputs_of.items()]


def _form(inputs: StepInputs) -> Form:
    """Choose the form of the step for a block set."""
    # Under torch.compile, the plain form: the others would break the graph.
    if inputs.options["foreach"] is False or torch.compiler.is_compiling():
        return _plain_form
    if has_kernels(inputs):
        from lightning_linf.optim.blockwise.kernel_step import KernelStep  # imports triton

        return KernelStep
    return cpu_form(inputs) or _plain_form


def _plain_form(inputs: list[StepInputs]) -> Callable[[], None]:
    return partial(single_tensor_step, inputs)


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


def _bias_correction(beta: float, step: Tensor, group: dict[str, Any]) -> Any:
    """Compute ``1 - beta ** step``: as a number, or as a tensor if the group is capturable."""
    if not group["capturable"]:
        return 1 - beta ** step.item()
    return 1 - beta ** step.to(wide_dtype(step))  # float32 has 1 - 0.999 to 5 digits only
