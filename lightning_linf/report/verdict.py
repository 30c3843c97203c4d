"""Whether a point favours Adam's geometry or SGD's: the one rule, as a status and in words."""

import math
from dataclasses import dataclass
from typing import Literal

from lightning_linf.report.interval import Interval, is_any_ratio, is_unknown, of_ratio
from lightning_linf.report.measurement import Measurement

Status = Literal[
    "favours adam", "favours sgd", "mixed", "undecided", "not converged", "undefined", "too early"
]
# What a monitor puts into ``settings["stage"]`` before a verdict makes sense.
TOO_EARLY = {
    "start": "the training loss has not left its start",
    "warm-up": "the learning rate is still rising",
}
_ENDS = ("coordinate", "global")  # Adam's geometry and SGD's


@dataclass(frozen=True)
class Verdict:
    """A status, for programs, and the same in words.

    - "undefined": the gradient or the Hessian is zero.
    - "too early": the training is in its warm-up, or its loss has not left its start.
    - "undecided": the 95 % interval of the advantage along the gradient's own steps includes 1, or
      the batches tell of none; or the bracket of the advantage at worst includes 1, and
      more products would hardly narrow it.
    - "not converged": that bracket includes 1, and more products could narrow it: nothing else is
      missing. One that excludes 1 needs no more: its ends are as sure as with more of them.
    - "mixed": one of the two is above 1, the other below.
    - "favours adam", "favours sgd": both are above 1, or below.

    The first of these that applies is the status.
    """

    status: Status
    sentence: str


def judge(measured: Measurement) -> Verdict:
    """Compare Adam's geometry with SGD's by both measures, and say nothing they do not show."""
    bracket = measured.advantage["coordinate"]
    step = measured.step_advantage_interval["coordinate"]
    if is_unknown(bracket):
        return Verdict(
            "undefined",
            "Undefined: with a zero gradient or a zero Hessian no geometry is ahead at this point.",
        )
    status, opening = _decide(measured, bracket, step)
    return Verdict(status, f"{opening} {_evidence(measured, bracket, step)}")


def _decide(measured: Measurement, bracket: Interval, step: Interval) -> tuple[Status, str]:
    stage = measured.settings.get("stage")
    if isinstance(stage, str) and stage in TOO_EARLY:
        return "too early", f"Too early: {TOO_EARLY[stage]}."
    if math.isnan(measured.step_advantage["coordinate"]):
        return "undecided", "Undecided: the loss does not curve upwards along both steps."
    if is_any_ratio(step):
        return (
            "undecided",
            "Undecided: the error over batches is not known. Measure on more of them.",
        )
    if 1 in step:
        return (
            "undecided",
            "Undecided: the error over batches includes 1, no difference. More batches may narrow "
            "it.",
        )
    if 1 in bracket:
        includes = "the range by the largest curvature includes 1, no difference"
        if all(measured.smoothness[name].converged for name in _ENDS):
            return "undecided", f"Undecided: {includes}."
        return "not converged", f"Not converged: {includes}, and more products could narrow it."
    if (bracket.lower > 1) != (step.lower > 1):
        return "mixed", "Mixed: the two measures contradict each other."
    if bracket.lower > 1:
        return "favours adam", "Favours Adam's geometry, by both measures."
    return "favours sgd", "Favours SGD's geometry, by both measures."


def _evidence(measured: Measurement, bracket: Interval, step: Interval) -> str:
    """Say what is known of both measures; one without an error comes second."""
    along = measured.step_advantage["coordinate"]
    by_largest = (
        f"{bracket} times as far as one of SGD's (l2) by the largest curvature that each can meet"
    )
    if math.isnan(along):
        ratios = by_largest
    elif is_any_ratio(step):
        ratios = (
            f"{by_largest}, on the batches measured, and {along:.3g} times, with an unknown error "
            "over batches, by the curvature along each"
        )
    else:
        ratios = (
            f"{along:.3g} ({of_ratio(step)} over batches) times as far as one of SGD's (l2) by the "
            f"curvature along each, and {bracket} times by the largest that each can meet"
        )
    return (
        f"To second order, one step of Adam's geometry (l-infinity) lowers the loss {ratios}. This "
        "is no forecast of how training ends."
    )
