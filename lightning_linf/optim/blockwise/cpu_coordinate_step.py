"""The step of blockwise Adam on the CPU where every entry is a block: torch's fused AdamW."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from lightning_linf.optim.blockwise.counts import Counts
from lightning_linf.optim.blockwise.cpu_slice_step import step_slices
from lightning_linf.optim.blockwise.step_inputs import StepInputs


class CoordinateStep:
    """The step of block sets of one tensor each, whose every entry is a block."""

    def __init__(self, inputs: Sequence[StepInputs]) -> None:
        self._inputs, self._counts = inputs, Counts(inputs)

    def __call__(self) -> None:
        """Make the step."""
        numbers = self._counts.incremented()
        self._counts.write()
        members = defaultdict(list)  # by parameter group
        for each, count, step in zip(
            self._inputs, numbers, numbers[len(self._inputs) :], strict=False
        ):
            # torch's AdamW has one count for both moments, and eps outside of the root.
            if count == step and not each.options["eps_inside"]:
                members[id(each.options)].append(each)
            else:
                step_slices(each, count, step)
        for alike in members.values():
            _fused_adamw(alike)


def _fused_adamw(inputs: Sequence[StepInputs]) -> None:
    group = inputs[0].options
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        [each.params[0].view(-1) for each in inputs],
        [each.grads[0].view(-1) for each in inputs],
        [each.exp_avgs[0].view(-1) for each in inputs],
        [each.exp_avg_sq for each in inputs],
        [],
        [each.steps[0] for each in inputs],
        lr=float(group["lr"]),
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )
