"""Whether the partition that is advised keeps Adam's lead over AdaSGD."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prediction.findings import Ended
from prediction.training import KEEP

COARSE_FIRST = ("global", "tensor", "row")  # what may be advised in place of Adam
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
"""Shares of Adam's own value from which on a coarser partition may be advised."""
RELIABLE = 0.9  # share of the advised that must keep the lead on the choosing half
ADAM = "coordinate"
_NAMES = {"global": "AdaSGD", "tensor": "tensor", "row": "row", ADAM: "Adam"}

Advisor = Callable[[Ended, int], str]  # of a task and the place of a seed, a partition


@dataclass(frozen=True)
class Kept:
    """How often a coarser partition was advised, and how often it kept Adam's lead.

    Args:
        num_cases: Tasks times seeds.
        num_advised: Cases in which a coarser partition was advised; in the others Adam is kept.
        num_kept: Of these, those in which it kept the share `training.KEEP`.
        num_unknown: Cases left out, because a rate of an optimizer in question is not inside its
            grid.
    """

    num_cases: int
    num_advised: int
    num_kept: int
    num_unknown: int


def kept_lead(ended: Ended, seed: int, partition: str) -> bool | None:
    """Tell whether a partition keeps Adam's lead over AdaSGD; None if one is missing.

    Where Adam has no lead, it must not lose more than a tenth of what Adam is behind.
    """
    losses = dict(zip(ended.contenders, ended.losses[seed], strict=True))
    if not {_NAMES[partition], "Adam", "AdaSGD"} <= losses.keys():
        return None
    lead = losses["AdaSGD"] - losses["Adam"]
    if not np.isfinite(lead):
        return None
    return bool(losses["AdaSGD"] - losses[_NAMES[partition]] >= KEEP * lead)


def kept_by(advisor: Advisor, ended: Sequence[Ended]) -> Kept:
    """Count the cases in which an advisor keeps Adam's lead."""
    advised = [
        (each, seed, partition)
        for each in ended
        for seed in range(len(each.losses))
        if (partition := advisor(each, seed)) != ADAM
    ]
    outcomes = [kept_lead(*case) for case in advised]
    return Kept(
        num_cases=sum(len(each.losses) for each in ended),
        num_advised=len(advised),
        num_kept=outcomes.count(True),
        num_unknown=outcomes.count(None),
    )


def by_threshold(quantity: str, threshold: float) -> Advisor:
    """Advise the coarsest partition whose value is at least a share of Adam's own.

    Of quantities that should be small, Adam's value over its own.
    """

    def advise(ended: Ended, seed: int) -> str:
        values = {name: of_seeds[seed] for name, of_seeds in ended.values[quantity].items()}
        for name in COARSE_FIRST:
            pair = values.get(name, np.nan), values[ADAM]
            above, below = pair if ended.larger_is_better[quantity] else pair[::-1]
            if 0 < below < np.inf and above / below >= threshold:
                return name
        return ADAM

    return advise


def choose_threshold(quantity: str, ended: Sequence[Ended]) -> float | None:
    """Choose the least threshold that is reliable on these tasks; None if none is."""
    for threshold in THRESHOLDS:
        kept = kept_by(by_threshold(quantity, threshold), ended)
        if kept.num_advised and kept.num_kept >= RELIABLE * kept.num_advised:
            return threshold
    return None


def always(partition: str) -> Advisor:
    """Advise the same partition everywhere."""
    return lambda ended, seed: partition


def tool(ended: Ended, seed: int) -> str:
    """Give what the tool advised there (`both_measures.coarsest`)."""
    return ended.advised[seed]
