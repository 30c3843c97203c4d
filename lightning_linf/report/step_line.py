"""The loss along a training's last step, by its values at a few multiples: as data."""

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_linf.report import encoding
from lightning_linf.report.encoding import Scalar
from lightning_linf.report.text import number


@dataclass(frozen=True)
class Estimated:
    """A number and its standard error, inf if that is unknown; both NaN if there is none."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{number(self.value)} ± {number(self.error)}"


@dataclass(frozen=True)
class StepLineReport:
    """What :class:`~lightning_linf.callbacks.StepMonitor` found; ``print(report)`` says it."""

    losses: dict[str, float]  # by the multiple of the step, in rising order
    change: Estimated  # of the loss by the step; negative where it lowered the loss
    curvature: Estimated  # D.HD at the end of the step D, in units of the loss
    lowest_multiple: Estimated  # at which the loss is lowest; NaN if it falls to the last multiple
    critical_multiple: Estimated  # above it the loss is not below its start; NaN if all lower it
    critical_multiple_lower: float  # the largest that was seen to lower the loss, all below do
    critical_multiple_upper: float  # the next one, which did not; inf if all do
    roughness: float  # standard error of a loss by rounding; inf if it is unknown
    seconds: float
    learning_rate: float = math.nan  # of the first parameter group in this step
    settings: dict[str, Scalar] = field(default_factory=dict)

    @property
    def num_forwards(self) -> int:
        """Forward passes over the batches."""
        return len(self.losses)

    @property
    def critical_lr(self) -> float:
        """Learning rate of the first group at which this step would not have lowered the loss."""
        return self.learning_rate * self.critical_multiple.value

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain JSON types, with what follows; inf and NaN become strings."""
        follows = {"num_forwards": self.num_forwards, "critical_lr": self.critical_lr}
        return {**encoding.encode(self), **encoding.encode(follows)}

    def __str__(self) -> str:
        lines = [
            f"The last step changed the loss by {self.change}, "
            f"with a curvature of {self.curvature} along it."
        ]
        if math.isfinite(self.lowest_multiple.value):
            lines.append(f"The loss is lowest at {self.lowest_multiple} times this step.")
        return "\n".join([*lines, self._critical()])

    def _critical(self) -> str:
        lower, upper = self.critical_multiple_lower, self.critical_multiple_upper
        if upper == math.inf:
            return (
                f"The largest multiple that lowers the loss is above {number(lower)}, the largest "
                "that was tried."
            )
        if lower == 0:
            return f"No multiple that was tried lowers the loss; the smallest was {number(upper)}."
        return (
            f"The largest multiple that lowers the loss is {self.critical_multiple}, between "
            f"{number(lower)} and {number(upper)}."
        )
