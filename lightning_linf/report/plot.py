"""A report as one figure: the curvature that a step can meet, and how far it gets."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_linf import figure_style as style
from lightning_linf.partition_names import GEOMETRY_OF
from lightning_linf.report.interval import Interval
from lightning_linf.report.measurement import Measurement
from lightning_linf.report.text import fine_to_coarse, smoothness_bracket
from lightning_linf.report.verdict import judge


def draw(measured: Measurement) -> Figure:
    """Draw each partition as a row: brackets as bars, and what is met along the gradient as dots.

    On the left N(Phi)/d from one end of its bracket to the other; on the right the advantage over
    SGD's step, as a bar if each step meets the largest curvature that it can, as a dot with its 95
    % interval if it meets the curvature along itself. Numbers that are NaN, infinite or not
    positive have no place on the logarithmic axes and are left out.
    """
    names = fine_to_coarse(measured)
    title = (
        f"Verdict: {judge(measured).status}. Bars: at worst; dots: along the gradient's own steps"
    )
    figure, (left, right) = style.grid(2, title, 4.8, 1.4 + 0.4 * len(names))
    for row, name in enumerate(names):
        color = style.color(row)
        _bar(left, row, smoothness_bracket(measured, name), color)
        _bar(right, row, measured.advantage[name], color)
        _dot(right, row, measured.step_advantage[name], measured.step_advantage_interval[name])
    left.set_xlabel("N(Φ)/d, loss per parameter squared")
    right.set_xlabel("decrease of the loss by one step, over that of SGD's")
    right.axvline(1, color="black", linewidth=0.8)
    labels = [
        f"{style.literal(name)}{'' if measured.smoothness[name].converged else ' *'}"
        f" ({GEOMETRY_OF.get(name, 'blockwise')})"
        for name in names
    ]
    for axes, shown in ((left, labels), (right, [""] * len(names))):
        style.make_log(axes, "x")
        axes.set_yticks(range(len(names)), shown)
        axes.set_ylim(len(names) - 0.5, -0.5)  # the finest partition on top
        axes.grid(axis="x", alpha=0.3)
    return figure


def _bar(axes: Axes, row: int, ends: Interval, color: str) -> None:
    if _is_shown(ends.lower) and _is_shown(ends.upper):
        # Equal ends would make a bar of no width.
        axes.plot(
            [ends.lower, ends.upper], [row, row], color=color, linewidth=7, solid_capstyle="butt"
        )
        axes.plot([ends.lower, ends.upper], [row, row], "|", color=color, markersize=9)


def _dot(axes: Axes, row: int, value: float, interval: Interval) -> None:
    if not _is_shown(value):
        return
    if _is_shown(interval.lower) and _is_shown(interval.upper):
        axes.plot([interval.lower, interval.upper], [row, row], color="black", linewidth=1)
    axes.plot([value], [row], "o", color="black", markersize=4)


def _is_shown(value: float) -> bool:
    return math.isfinite(value) and value > 0
