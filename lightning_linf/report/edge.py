"""How near an optimizer's next step is to instability, and what its last step did: as data."""

import math
from dataclasses import dataclass
from typing import Any

from lightning_linf.report import encoding
from lightning_linf.report.encoding import Scalar
from lightning_linf.report.text import number


@dataclass(frozen=True)
class StepReport:
    """The loss along a training's last step D from theta to theta', by its derivatives at theta'.

    The loss along the step is taken for the parabola that has the slope and the curvature of the
    loss at theta', so the error of ``gain`` falls with the third power of the length of the step.
    """

    slope: float  # g.D at theta', where the step ended
    curvature: float  # D.HD at theta'

    @property
    def gain(self) -> float:
        """Change of the loss from theta to theta'; negative where the step lowered it."""
        return self.slope - self.curvature / 2

    @property
    def best_multiple(self) -> float:
        """The multiple of the step, from theta on, at which the parabola has its minimum.

        Above 1 the step was too short, below 1 too long, below 0 it went uphill at theta; 0.5 and
        less is a step after which the loss is no lower. inf if the curvature is not positive, so
        that there is no minimum; NaN if nothing has moved.
        """
        if self.curvature > 0:
            return 1 - self.slope / self.curvature
        return math.nan if self.slope == self.curvature == 0 else math.inf


@dataclass(frozen=True)
class EdgeReport:
    """What :func:`~lightning_linf.measure_edge` found. ``print(report)`` says it in words."""

    num_params: int  # d
    loss: float
    # Largest eigenvalue of the preconditioned Hessian over its threshold, lower end. NaN where a
    # monitor's optimizer has no such threshold, as is what follows from it.
    edge: float
    edge_upper: float  # upper end, too low for at most 0.25 % of seeds
    learning_rate: float  # of the first parameter group
    step: StepReport | None  # None where no step was given
    per_tensor: dict[str, StepReport]  # by name of a parameter tensor; empty without a step
    settings: dict[str, Scalar]  # what it was measured with
    num_hvps: int
    seconds: float

    @property
    def edge_relative_error(self) -> float:
        """(upper end - lower end) / lower end; inf if there is no positive curvature."""
        return math.inf if self.edge <= 0 else (self.edge_upper - self.edge) / self.edge

    @property
    def largest_stable_lr(self) -> float:
        """Learning rate of the first group at which ``edge`` is 1, if all groups' change alike.

        From the lower end, so steps may diverge a little earlier. A decoupled weight decay's part
        in the threshold is taken as it is. inf without positive curvature; NaN at a learning rate
        of 0, which tells nothing.
        """
        if self.edge <= 0:
            return math.inf if self.learning_rate > 0 else math.nan
        return self.learning_rate / self.edge

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain JSON types, with what follows; inf and NaN become strings."""
        follows: dict[str, Any] = {
            "edge_relative_error": self.edge_relative_error,
            "largest_stable_lr": self.largest_stable_lr,
        }
        if self.step is not None:
            follows["step_gain"] = self.step.gain
            follows["best_step_multiple"] = self.step.best_multiple
        return {**encoding.encode(self), **encoding.encode(follows)}

    def __str__(self) -> str:
        side = "below" if self.edge_upper < 1 else "above" if self.edge > 1 else "around"
        lines = []
        if not math.isnan(self.edge):
            lines = [
                f"edge {number(self.edge)} to {number(self.edge_upper)}, {side} 1, the edge of "
                "stability.",
                f"Learning rate {number(self.learning_rate)}; at "
                f"{number(self.largest_stable_lr)}, and the same preconditioner, the edge is "
                "reached.",
            ]
        if self.step is not None:
            lines.append(
                f"The last step changed the loss by {number(self.step.gain)} to second order; "
                f"{number(self.step.best_multiple)} times this step would have been the best."
            )
        return "\n".join(lines)
