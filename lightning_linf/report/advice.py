"""What each partition leaves of Adam's decrease in one step, by both measures."""

from dataclasses import dataclass

from lightning_linf.report.interval import Interval, is_unknown
from lightning_linf.report.measurement import Measurement
from lightning_linf.report.verdict import judge


@dataclass(frozen=True)
class Advice:
    """Shares of Adam's decrease in one step; no test shows that they tell how training ends.

    Its subject is one step from one point, with the exact gradient: gradient noise, momentum and
    the rest of training are not considered.

    Args:
        partition: The coarsest one that both measures show to reach the share ``keep`` of Adam's
            decrease, with their errors, both its bracket and Adam's converged, and not too early in
            training; None if there is none.
        keep: The share that was asked for, such as 0.9.
        step_shares: By partition, coarsest first, a 95 % interval over batches of the decrease of
            its step divided by that of Adam's, by the curvature along each step.
        shares: The same by the largest curvature that each step can meet: bounds.
        num_blocks: By partition.
    """

    partition: str | None
    keep: float
    step_shares: dict[str, Interval]
    shares: dict[str, Interval]
    num_blocks: dict[str, int]

    @property
    def sentence(self) -> str:
        """The shares in words; it says nothing of Adam and SGD."""
        keep = f"{100 * self.keep:.3g} % of Adam's decrease in one step"
        if self.partition is None:
            text = f"No coarser partition is shown by both measures to reach {keep}."
        else:
            count = self.num_blocks[self.partition]
            text = (
                f"By both measures, {_subject(self.partition)} ({count:,} for "
                f"{self.num_blocks['coordinate']:,} parameters) reaches {keep}. This is no "
                "recommendation: in a test on small tasks, training kept 90 % of Adam's lead in "
                "neither of the two such cases."
            )
        listed = "; ".join(
            f"{name} {_words(self.step_shares[name])}, {_words(self.shares[name])}"
            for name in self.shares
            if name != "coordinate"
        )
        return (
            f"{text} Shares by the curvature along each step, and by the largest that it can meet: "
            f"{listed}."
        )

    def __str__(self) -> str:
        return self.sentence


def advise(measured: Measurement, keep: float) -> Advice:
    """Compare the decrease of each partition in one step with Adam's.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].

    Source:
        The decrease ``dual_Phi(g)^2 / (2 N(Phi))`` of steepest descent in norm_Phi: Balles,
        Pedregosa & Le Roux, arXiv:2002.08056.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"recommend: `keep` must be in (0, 1], got {keep}. 0.9 is 90 %.")
    num_blocks = {name: block.num_blocks for name, block in measured.smoothness.items()}
    coarse_first = sorted(num_blocks, key=num_blocks.__getitem__)
    over_adam = measured.decrease_over("coordinate")
    shares = {name: over_adam[name] for name in coarse_first}
    step_shares = {name: measured.step_share(name) for name in coarse_first}
    has_verdict = judge(measured).status not in ("undefined", "too early")
    shown = [
        name
        for name in coarse_first
        if name != "coordinate"
        and shares[name].lower >= keep
        and step_shares[name].lower >= keep
        and measured.smoothness[name].converged
        and measured.smoothness["coordinate"].converged
        and has_verdict
    ]
    return Advice(
        # The surer one of two with the same number of blocks.
        partition=min(shown, key=lambda n: (num_blocks[n], -step_shares[n].lower), default=None),
        keep=keep,
        step_shares=step_shares,
        shares=shares,
        num_blocks=num_blocks,
    )


def _words(share: Interval) -> str:
    return "unknown" if is_unknown(share) else str(share)


def _subject(partition: str) -> str:
    if partition == "global":
        return "one second moment for all parameters"
    return f"one second moment for each block of {partition!r}"
