"""Which partition the landscape asks for, in numbers and in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_linf.report.interval import Interval, divide
from lightning_linf.report.measurement import Measurement

_BYTES = 4  # of one float32 second moment


@dataclass(frozen=True)
class Advice:
    """The coarsest partition that is shown to keep the share ``keep`` of Adam's promised decrease.

    Its subject is one step from one point, with the exact gradient: gradient noise, momentum and
    the rest of training are not considered.

    Args:
        partition: The recommended one; "coordinate", which is Adam itself, if no coarser one is
            shown to keep as much.
        keep: The share that was asked for, such as 0.9.
        shares: By partition, coarsest first, bounds on its promised decrease divided by Adam's.
        estimates: The same ratio as one number, from the lower ends of N(Phi), which are close to
            N(Phi) where their iteration converged.
        undecided: Partitions coarser than the recommended one whose bounds include ``keep``, so
            that they may or may not be good enough; coarsest first.
        num_params: Number of parameters d.
        num_blocks: Number of blocks B of ``partition``.
        adam_advantage: Bounds on Adam's promised decrease divided by SGD's.
        not_converged: Partitions whose bounds more products could still narrow.
    """

    partition: str
    keep: float
    shares: dict[str, Interval]
    estimates: dict[str, float]
    undecided: list[str]
    num_params: int
    num_blocks: int
    adam_advantage: Interval
    not_converged: list[str]

    @property
    def share(self) -> Interval:
        """Bounds on what ``partition`` keeps of Adam's promised decrease."""
        return self.shares[self.partition]

    @property
    def second_moment_bytes_saved(self) -> int:
        """Bytes of float32 second moments that Adam has and ``partition`` does without."""
        return _BYTES * (self.num_params - self.num_blocks)

    @property
    def saved_fraction(self) -> float:
        """Share of Adam's state that is saved; Adam keeps two numbers per parameter."""
        return (self.num_params - self.num_blocks) / (2 * self.num_params)

    @property
    def sentence(self) -> str:
        """The advice, which compares partitions with Adam and says nothing of Adam and SGD."""
        keep = f"{100 * self.keep:.3g} %"
        numbers = "1 number" if self.num_blocks == 1 else f"{self.num_blocks:,} numbers"
        if self.partition == "coordinate":
            text = (
                f"No coarser partition is shown to keep {keep} of Adam's promised decrease: "
                "keep one second moment per parameter, as Adam does."
            )
        else:
            text = (
                f"{_subject(self.partition)} {self._share_of(self.partition)} of Adam's promised "
                f"decrease with {numbers} instead of {self.num_params:,}: "
                f"{_size(self.second_moment_bytes_saved)} saved, {100 * self.saved_fraction:.0f} % "
                "of Adam's state."
            )
        if self.undecided:
            listed = "; ".join(f"{name} {self._share_of(name)}" for name in self.undecided)
            text += f" Not distinguishable from {keep}: {listed}."
        if self.not_converged:
            text += f" Not converged, so less sure: {', '.join(self.not_converged)}."
        return f"{text} This holds for one step from this point, without gradient noise."

    def __str__(self) -> str:
        if self.adam_advantage.upper < 1:
            return f"{_sentence(self.adam_advantage)} {self.sentence}"
        return self.sentence

    def _share_of(self, name: str) -> str:
        if math.isnan(self.estimates[name]):
            return "(undefined)"
        return f"{self.estimates[name]:.3g} ({self.shares[name]})"


def advise(measured: Measurement, keep: float) -> Advice:
    """Find the coarsest partition that is shown to keep ``keep`` of Adam's promised decrease.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].

    Source:
        The decrease ``dual_Phi(g)^2 / (2 N(Phi))`` of steepest descent in norm_Phi: Balles,
        Pedregosa & Le Roux, arXiv:2002.08056.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"recommend: `keep` must be in (0, 1], got {keep}. 0.9 keeps 90 %.")
    num_blocks = {name: block.num_blocks for name, block in measured.smoothness.items()}
    over_adam = measured.decrease_over("coordinate")
    shares = {name: over_adam[name] for name in sorted(num_blocks, key=num_blocks.__getitem__)}
    estimates = {name: _estimate(measured, name) for name in shares}
    shown = [name for name in shares if shares[name].lower >= keep]
    best = min(shown, key=lambda name: (num_blocks[name], -shares[name].lower))
    undecided = [
        name
        for name in shares
        if num_blocks[name] < num_blocks[best] and not shares[name].upper < keep
    ]
    return Advice(
        partition=best,
        keep=keep,
        shares=shares,
        estimates=estimates,
        undecided=undecided,
        num_params=measured.num_params,
        num_blocks=num_blocks[best],
        adam_advantage=measured.advantage["coordinate"],
        not_converged=[name for name in shares if not measured.smoothness[name].converged],
    )


def _estimate(measured: Measurement, name: str) -> float:
    if name == "coordinate":  # Adam keeps all of its own decrease, also where that is undefined
        return 1.0
    dual = divide(measured.dual_norm[name], measured.dual_norm["coordinate"])
    lower_ends = measured.smoothness["coordinate"].lower, measured.smoothness[name].lower
    return dual * dual * divide(*lower_ends)


def verdict(measured: Measurement) -> str:
    """Say in one sentence whether this point favours Adam's geometry over SGD's."""
    open_ends = [
        name for name in ("coordinate", "global") if not measured.smoothness[name].converged
    ]
    along = measured.step_advantage["coordinate"]
    return _sentence(measured.advantage["coordinate"], open_ends, along)


def _sentence(
    advantage: Interval, not_converged: Sequence[str] = (), along: float = math.nan
) -> str:
    unclear = "At this point Adam's geometry and SGD's are not distinguishable"
    if math.isnan(advantage.lower) or math.isnan(advantage.upper):
        return f"{unclear}: with a zero gradient or a zero Hessian the advantage is undefined."
    if advantage.lower > 1:
        opening = "This point favours Adam's geometry over SGD's"
    elif advantage.upper < 1:
        opening = "This point favours SGD's geometry over Adam's"
    else:
        opening = unclear
    doubt = f" (not converged: {', '.join(not_converged)})" if not_converged else ""
    by_step = (
        "" if math.isnan(along) else f", {along:.3g} times by the curvature along the gradient"
    )
    return (
        f"{opening}: steepest descent along l-infinity promises {advantage} times the decrease of "
        f"steepest descent along l2{doubt}{by_step}."
    )


def _subject(partition: str) -> str:
    if partition == "global":
        return "One second moment for all parameters keeps"
    if partition.isidentifier():
        return f"Second moments per {partition} keep"
    return f'Second moments by partition "{partition}" keep'


def _size(num_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes} bytes"
