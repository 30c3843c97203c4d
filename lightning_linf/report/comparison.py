"""Two reports side by side, and what the measurements tell apart."""

import math

from rich.table import Table
from rich.text import Text

from lightning_linf.report.interval import Interval, divide
from lightning_linf.report.measurement import Measurement
from lightning_linf.report.terminal import make_table
from lightning_linf.report.text import (
    around_lambda_max,
    fine_to_coarse,
    number,
    smoothness_bracket,
    with_error,
)


def compare(first: Measurement, second: Measurement, names: tuple[str, str]) -> Table:
    """Lay two reports side by side, and say where the measurements show a difference.

    Two brackets are told apart if they do not overlap, two (1,1)-norms if they differ by more than
    two standard errors of their difference. Loss and gradient density have no answer ("-"): they
    are exact for the batches that were measured on, and vary between batches by an unknown amount.
    """
    table = make_table(
        ("", *names, "ratio", "told apart"),
        title=Text(f"Geometry of the loss: {names[0]} and {names[1]}"),
        caption=Text(_caption(first, second, names), justify="left"),
    )

    def add(label: str, old: str, new: str, ratio: float, differ: bool | None = None) -> None:
        told = "-" if differ is None else "yes" if differ else "no"
        table.add_row(*map(Text, (label, old, new, number(ratio), told)))

    def add_bracket(label: str, old: Interval, new: Interval) -> None:
        ratio = divide(_middle(new), _middle(old))
        add(label, str(old), str(new), ratio, not old.overlaps(new))

    add("loss", number(first.loss), number(second.loss), divide(second.loss, first.loss))
    add(
        "gradient density",
        number(first.density),
        number(second.density),
        divide(second.density, first.density),
    )
    add(
        "lambda_max",
        str(around_lambda_max(first)),
        str(around_lambda_max(second)),
        divide(second.lambda_max, first.lambda_max),
        not around_lambda_max(first).overlaps(around_lambda_max(second)),
    )
    add(
        "(1,1)-norm/d",
        with_error(first.one_one_norm_per_param, first.one_one_norm_relative_error),
        with_error(second.one_one_norm_per_param, second.one_one_norm_relative_error),
        divide(second.one_one_norm_per_param, first.one_one_norm_per_param),
        _one_one_norms_differ(first, second),
    )
    common = [name for name in fine_to_coarse(first) if name in second.smoothness]
    for name in common:
        add_bracket(f"N({name})/d", *(smoothness_bracket(r, name) for r in (first, second)))
    for name in common:
        if name != "global":  # 1 by definition
            add_bracket(f"advantage of {name}", *(r.advantage[name] for r in (first, second)))
    return table


def _middle(bracket: Interval) -> float:
    """Give the geometric mean of both ends, NaN if one of them is negative or NaN."""
    if not (bracket.lower >= 0 and bracket.upper >= 0):
        return math.nan
    return math.sqrt(bracket.lower) * math.sqrt(bracket.upper)


def _one_one_norms_differ(first: Measurement, second: Measurement) -> bool:
    old, new = (
        (report.one_one_norm_per_param, report.one_one_norm_relative_error)
        for report in (first, second)
    )
    return abs(new[0] - old[0]) > 2 * math.hypot(old[0] * old[1], new[0] * new[1])


def _caption(first: Measurement, second: Measurement, names: tuple[str, str]) -> str:
    lines = [f"ratio: {names[1]} over {names[0]}, of geometric midpoints."]
    if first.num_params != second.num_params:
        lines.append(
            f"The numbers of parameters differ: {names[0]} has {first.num_params:,}, {names[1]} "
            f"{second.num_params:,}."
        )
    for name, report in zip(names, (first, second), strict=True):
        open_ends = [n for n in fine_to_coarse(report) if not report.smoothness[n].converged]
        if open_ends:
            lines.append(f"Not converged in {name}: {', '.join(open_ends)}.")
    return "\n".join(lines)
