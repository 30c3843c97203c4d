"""The last measurement of a run as a table and sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_linf import quantities
from lightning_linf.partition_names import FINE_TO_COARSE
from lightning_linf.quantity import PartitionScalar
from lightning_linf.report import Interval
from lightning_linf.report.advice import verdict
from lightning_linf.report.interval import divide
from lightning_linf.report.table import number, with_error

KEEP = 0.9  # of Adam's promised decrease, by the partition that is recommended
# From few blocks to many; a partition of the user's own stands before the first with rows.
COARSE_TO_FINE = tuple(reversed(FINE_TO_COARSE))
_LOOK_BACK = 100  # measurements, for the last one that is whole
_Values = Mapping[str, float]  # of one step, by tag
_NEEDED = (
    quantities.LAMBDA_MAX.tag,
    quantities.LAMBDA_MAX_ERROR.tag,
    quantities.ONE_ONE_NORM_PER_PARAM.tag,
)
_BRACKETS = (  # by partition
    *(quantities.OPERATOR_NORM_LOWER, quantities.OPERATOR_NORM_UPPER),
    *(quantities.ADVANTAGE_LOWER, quantities.ADVANTAGE_UPPER),
)
HEAD = ("partition", "N(Φ)/d", "H(Φ)/d", "advantage", "along g", "of Adam's decrease", "R²")

LEGEND = (
    "N(Φ)/d: what one step meets of the curvature; an upper end is too low for 0.25 % of seeds at "
    "most. H(Φ)/d: blockwise smoothness, "
    "no less than N(Φ)/d, but an estimate (± standard error) that may fall below it; for "
    "coordinate the (1,1)-norm itself. Both in loss per parameter squared. advantage: the "
    "decrease of the loss that one step of steepest descent promises, over that of global, the "
    "geometry of SGD; coordinate is that of Adam. along g: the same by the curvature along that "
    "step itself. R²: share of the spread of log|g| beyond chance between blocks."
)


@dataclass(frozen=True)
class Summary:
    """What a reader who sees no panel gets to know."""

    step: int
    rows: list[list[str]]  # cells of HEAD, fine to coarse
    sentences: list[str]


def summarize(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> Summary | None:
    """Put the last whole measurement of the smoothness in words; None without one.

    Args:
        scalars: Steps and values by tag.
    """
    step, last = _last_whole(scalars)
    if step is None:
        return None
    names = sorted([*_partitions(last), "global"], key=_coarseness)
    shares = {name: _share(last, name) for name in names}
    rows = [_row(last, name, shares[name]) for name in reversed(names)]
    along = last.get(quantities.STEP_ADVANTAGE.of("coordinate"), math.nan)
    not_converged = [name for name in names if not last.get(quantities.CONVERGED.of(name), 1.0)]
    ends = [name for name in ("coordinate", "global") if name in not_converged]
    sentences = [
        verdict(_advantage(last, "coordinate"), ends, along),
        _advice(names, shares, not_converged),
    ]
    return Summary(step, rows, sentences)


def _last_whole(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> tuple[int | None, _Values]:
    """Find the last step with all that a summary needs; a kill can leave a part of a step."""
    steps = sorted({step for step, _ in scalars.get(quantities.LAMBDA_MAX.tag, ())})[-_LOOK_BACK:]
    looked_at = set(steps)
    by_tag = {
        tag: {step: value for step, value in points if step in looked_at}
        for tag, points in scalars.items()
    }
    measured = [{tag: by_tag[tag][step] for tag in by_tag if step in by_tag[tag]} for step in steps]
    before: list[_Values] = [{}, *measured]
    for step, values, previous in reversed(list(zip(steps, measured, before, strict=False))):
        names = _partitions(values)
        lacks_some = set(names) < set(_partitions(previous))
        needed = [*_NEEDED, *(end.of(name) for end in _BRACKETS for name in names)]
        if "coordinate" in names and not lacks_some and all(tag in values for tag in needed):
            return step, values
    return None, {}


def _partitions(values: _Values) -> list[str]:
    """List those with any part of their brackets."""
    return sorted(
        {
            tag.removeprefix(start)
            for start in (end.of("") for end in _BRACKETS)
            for tag in values
            if tag.startswith(start)
        }
    )


def _coarseness(name: str) -> tuple[int, str]:
    own = COARSE_TO_FINE.index("tensor")
    return COARSE_TO_FINE.index(name) if name in COARSE_TO_FINE else own, name


def _advantage(last: Mapping[str, float], name: str) -> Interval:
    if name == "global":
        return Interval(1.0, 1.0)
    return Interval(
        last[quantities.ADVANTAGE_LOWER.of(name)], last[quantities.ADVANTAGE_UPPER.of(name)]
    )


def _operator_norm(last: Mapping[str, float], name: str) -> Interval:
    """Bracket N(Phi) / d."""
    if name != "global":
        low, high = quantities.OPERATOR_NORM_LOWER, quantities.OPERATOR_NORM_UPPER
        return Interval(last[low.of(name)], last[high.of(name)])
    lower = last[quantities.LAMBDA_MAX.tag]
    return Interval(lower, lower * (1 + last[quantities.LAMBDA_MAX_ERROR.tag]))


def _share(last: Mapping[str, float], name: str) -> Interval:
    """Bracket the promised decrease of a partition over Adam's."""
    if name == "coordinate":
        return Interval(1.0, 1.0)
    adam = _operator_norm(last, "coordinate")
    block = _operator_norm(last, name)
    dual = divide(_scaled_dual(last, name), _scaled_dual(last, "coordinate"))
    return Interval(dual * divide(adam.lower, block.upper), dual * divide(adam.upper, block.lower))


def _scaled_dual(last: Mapping[str, float], name: str) -> float:
    """Undo an advantage's division by N(Phi): dual_Phi(g)^2 times what all partitions share."""
    if name == "global":
        return last[quantities.LAMBDA_MAX.tag]
    return _advantage(last, name).lower * _operator_norm(last, name).upper


def _advice(
    names: Sequence[str], shares: Mapping[str, Interval], not_converged: Sequence[str]
) -> str:
    """Name the coarsest partition that is shown to keep ``KEEP``."""
    best = next(name for name in names if shares[name].lower >= KEEP)
    ending = "This holds for one step from the last measured point, without gradient noise."
    if not_converged:
        ending = f"Not converged, so less sure: {', '.join(not_converged)}. {ending}"
    if best == "coordinate":
        return (
            f"No coarser partition is shown to keep {100 * KEEP:.0f} % of Adam's promised "
            f"decrease: keep one second moment per parameter, as Adam does. {ending}"
        )
    subject = (
        "One second moment for all parameters keeps"
        if best == "global"
        else f"Second moments by {best} keep"
    )
    return f"{subject} {shares[best]} of Adam's promised decrease. {ending}"


def _row(last: Mapping[str, float], name: str, share: Interval) -> list[str]:
    def cell(quantity: PartitionScalar) -> str:
        value = last.get(quantity.of(name))
        return "-" if value is None or math.isnan(value) else number(value)

    smoothness = {
        "coordinate": with_error(
            last[quantities.ONE_ONE_NORM_PER_PARAM.tag],
            last.get(quantities.ONE_ONE_NORM_ERROR.tag, 0.0),
        ),
        "global": f"≤ {number(_operator_norm(last, name).upper)}",
    }.get(name, f"≤ {cell(quantities.SMOOTHNESS_UPPER)}")
    return [
        name,
        str(_operator_norm(last, name)),
        smoothness,
        str(_advantage(last, name)),
        "1" if name == "global" else cell(quantities.STEP_ADVANTAGE),
        str(share),
        {"coordinate": "1", "global": "0"}.get(name) or cell(quantities.R_SQUARED),
    ]
