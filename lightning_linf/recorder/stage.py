"""How far a training has come: whether its warm-up is over, and its loss has left its start."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

Stage = Literal["warm-up", "start", "training"]
_NUM_LOSSES = 10  # at the start, and now
_NUM_ERRORS = 2  # standard errors that the loss must have fallen by


class TrainingStage:
    """Follow learning rates and training losses; neither is changed, nor read from a device.

    - "warm-up": a learning rate has risen, none has fallen since, and that is no longer ago than
      the longest pause between rises so far. (A rate that rises once an epoch is rising.)
    - "start": the mean loss of the latest ten batches is not below that of the first ten by two
      standard errors of the difference. Of fewer than twenty batches, halves are compared. Where
      ``training_step`` returns no loss, as it may under manual optimization, rates alone tell.
    - "training": else.
    """

    def __init__(self) -> None:
        self._first: list[Tensor | float] = []
        self._latest: deque[Tensor | float] = deque(maxlen=_NUM_LOSSES)
        self._num_losses = 0
        self._optimizers: list[int] = []  # identities
        self._rates: list[float] = []
        self._is_rising = False
        self._num_steps = self._longest_pause = 0
        self._last_rise = 1  # the first step's rate may be one

    def add_loss(self, outputs: Any) -> None:
        """Keep the loss that ``training_step`` has returned, if it has."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        self._num_losses += 1
        if len(self._first) < _NUM_LOSSES:
            self._first.append(loss.detach())
        self._latest.append(loss.detach())

    def add_step(self, optimizers: Sequence[Optimizer]) -> None:
        """Read the learning rates once an optimizer step."""
        rates = [float(group["lr"]) for each in optimizers for group in each.param_groups]
        identities = [id(each) for each in optimizers]
        pairs: list[tuple[float, float]] = []
        if identities == self._optimizers:  # another optimizer's rates are others
            pairs = list(zip(self._rates, rates, strict=False))
        self._optimizers, self._rates = identities, rates
        self._num_steps += 1
        if any(new > old for old, new in pairs):
            self._longest_pause = max(self._longest_pause, self._num_steps - self._last_rise)
            self._last_rise, self._is_rising = self._num_steps, True
        elif any(new < old for old, new in pairs):
            self._is_rising = False

    def now(self, reduce: Callable[[Tensor], Tensor] | None) -> Stage:
        """Tell the stage, the same on all ranks, whose losses ``reduce`` adds up."""
        if self._is_rising and self._num_steps - self._last_rise <= self._longest_pause:
            return "warm-up"
        count = min(_NUM_LOSSES, self._num_losses // 2)
        windows = self._first[:count], list(self._latest)[len(self._latest) - count :]
        values = [[float(loss) for loss in window] for window in windows]
        sums = [sum(x**power for x in each) for each in values for power in (1, 2)]
        totals = torch.tensor([count, *sums, self._num_losses], dtype=torch.float64)
        *moments, num_losses = (totals if reduce is None else reduce(totals)).tolist()
        return "training" if num_losses == 0 or _has_fallen(*moments) else "start"

    def state_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "first": [float(loss) for loss in self._first],
            "latest": [float(loss) for loss in self._latest],
            "num_losses": self._num_losses,
            "is_rising": self._is_rising,
            "counts": [self._num_steps, self._last_rise, self._longest_pause],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self._first = list(state_dict["first"])
        self._latest.extend(state_dict["latest"])
        self._num_losses = state_dict["num_losses"]
        self._is_rising = state_dict["is_rising"]
        self._num_steps, self._last_rise, self._longest_pause = state_dict["counts"]


def _has_fallen(
    count: float, first: float, first_squared: float, latest: float, latest_squared: float
) -> bool:
    """Compare the means of two samples of ``count`` losses each, from their sums."""
    if count < 2:
        return False
    variances = [
        max(squared / count - (total / count) ** 2, 0.0) * count / (count - 1)
        for total, squared in ((first, first_squared), (latest, latest_squared))
    ]
    error = math.sqrt(sum(variances) / count)
    return (first - latest) / count > _NUM_ERRORS * error
