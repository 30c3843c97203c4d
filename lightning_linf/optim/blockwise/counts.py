"""Numbers of updates of many tensors on the CPU, read and written by one call each."""

from collections.abc import Iterable

import torch

from lightning_linf.optim.blockwise.step_inputs import StepInputs


class Counts:
    """The counts of block sets, and then of all their tensors.

    Adding to a tensor of one number takes as long as updating a small parameter, so all are added
    to in one tensor beside them.
    """

    def __init__(self, inputs: Iterable[StepInputs]) -> None:
        inputs = list(inputs)
        self.tensors = [each.exp_avg_sq_step for each in inputs]
        self.tensors += [step for each in inputs for step in each.steps]
        self._numbers = torch.empty(len(self.tensors))
        self._views = list(self._numbers.unbind())

    def incremented(self) -> list[float]:
        """Read them, and give what they are after this step."""
        torch.stack(self.tensors, out=self._numbers).add_(1)
        numbers: list[float] = self._numbers.tolist()
        return numbers

    def write(self) -> None:
        """Write what :meth:`incremented` has given."""
        torch._foreach_copy_(self.tensors, self._views)
