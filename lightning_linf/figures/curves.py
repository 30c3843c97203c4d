"""The figures of curves over steps: the verdict, and the smoothness of each partition."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lightning_linf import figure_style as style
from lightning_linf import quantities
from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.partition_names import FINE_TO_COARSE, GEOMETRY_OF
from lightning_linf.quantity import PartitionScalar
from lightning_linf.runs.run import Run

_DASHES = ("-", "--")
_MAX_MARKERS = 25  # on one curve
_WIDE = 1e3  # losses that span more are flat on a linear axis
_TagsOf = Callable[[str], Sequence[str]]  # of a partition: one curve, or both ends of a bracket


def draw_verdict(runs: Sequence[Run]) -> Figure | None:
    """Draw the advantage of each partition's step over SGD's; None if no run has it.

    A line: if each step meets the curvature along itself; an area: the largest that it can.

    Of several runs only the advantage of Adam is drawn, as the panel does at first.
    """
    partitions = _partitions(runs, quantities.ADVANTAGE_LOWER)
    if not partitions:
        return None
    shown = partitions if len(runs) == 1 else ["coordinate"]
    title = "One step against SGD's: along itself (line), and at worst (area)"
    figure, (axes,) = style.grid(1, title, 7.2, 4.2)
    _draw(axes, runs, shown, _along)
    _draw(axes, runs, shown, _advantage)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel(quantities.ADVANTAGE_LOWER.unit)
    style.make_log(axes)
    _add_legend(figure, runs, shown, also="global")
    return figure


def draw_smoothness(runs: Sequence[Run]) -> Figure | None:
    """Draw H(Φ)/d and N(Φ)/d of each partition side by side; None if no run has them.

    Of several runs only those of Adam and of SGD are drawn, as the panel does at first.
    """
    partitions = _partitions(runs, quantities.OPERATOR_NORM_LOWER, quantities.SMOOTHNESS_UPPER)
    if any(quantities.LAMBDA_MAX.tag in run.scalars for run in runs):
        partitions.append("global")
    if not partitions:
        return None
    shown = partitions if len(runs) == 1 else ["coordinate", "global"]
    figure, parts = style.grid(2, "Smoothness: l-infinity against l2", 4.8, 4.2)
    for axes, kind, tags_of in zip(parts, "HN", (_bound, _met), strict=True):
        axes.sharey(parts[0])
        _draw(axes, runs, shown, tags_of)
        axes.set_ylabel(f"{kind}(Φ)/d, loss per parameter squared")
    style.make_log(parts[0])
    _add_legend(figure, runs, shown)
    return figure


def draw_losses(runs: Sequence[Run]) -> Figure | None:
    """Draw the losses that the trainings have logged themselves; None if none has.

    Of several runs a loss has the dash of its place among all of their losses.
    """
    tags = own_scalars({tag for run in runs for tag in run.own})["loss"]
    if not tags:
        return None
    figure, (axes,) = style.grid(1, "Losses of the training", 7.2, 4.2)
    values: list[float] = []
    for i, run in enumerate(runs):
        for j, tag in enumerate(tags):
            points = [(step, y) for step, y in run.own.get(tag, ()) if math.isfinite(y)]
            values += [y for _, y in points]
            label = style.literal(tag if len(runs) == 1 else f"{run.name}: {tag}")
            color = style.color(j if len(runs) == 1 else i)
            dash = "-" if len(runs) == 1 else _DASHES[j % len(_DASHES)]
            if points:
                axes.plot(*zip(*points, strict=True), dash, color=color, label=label)
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        style.make_log(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _along(partition: str) -> Sequence[str]:
    return (quantities.STEP_ADVANTAGE.of(partition),)


def _advantage(partition: str) -> Sequence[str]:
    return quantities.ADVANTAGE_LOWER.of(partition), quantities.ADVANTAGE_UPPER.of(partition)


def _bound(partition: str) -> Sequence[str]:
    """Give the tag of H(Φ)/d, which is measured for SGD, estimated for Adam, or else bounded."""
    if partition == "global":
        return (quantities.LAMBDA_MAX.tag,)
    if partition == "coordinate":
        return (quantities.ONE_ONE_NORM_PER_PARAM.tag,)
    return (quantities.SMOOTHNESS_UPPER.of(partition),)


def _met(partition: str) -> Sequence[str]:
    """Give the tags of both ends of N(Φ)/d, which for SGD is λ_max."""
    if partition == "global":
        return (quantities.LAMBDA_MAX.tag,)
    lower, upper = quantities.OPERATOR_NORM_LOWER, quantities.OPERATOR_NORM_UPPER
    return lower.of(partition), upper.of(partition)


def _partitions(runs: Sequence[Run], *scalars: PartitionScalar) -> list[str]:
    """List the partitions of which any run has one of the quantities, from fine to coarse."""
    starts = [scalar.of("") for scalar in scalars]
    tags = {tag for run in runs for tag in run.scalars}
    found = {tag.removeprefix(s) for s in starts for tag in tags if tag.startswith(s)}
    known: list[str] = [name for name in FINE_TO_COARSE if name in found]
    return known + sorted(found.difference(known))


def _draw(axes: Axes, runs: Sequence[Run], shown: Sequence[str], tags_of: _TagsOf) -> None:
    """Draw a curve, or an area between two, for each run and partition that was measured."""
    for i, run in enumerate(runs):
        for j, partition in enumerate(shown):
            curves = [dict(run.scalars.get(tag, ())) for tag in tags_of(partition)]
            # A logarithm has no place for zero, and a run that was killed may lack the second end.
            steps = [
                step
                for step in sorted(set.intersection(*map(set, curves)))
                if all(math.isfinite(curve[step]) and curve[step] > 0 for curve in curves)
            ]
            values = [[curve[step] for step in steps] for curve in curves]
            look = _look(len(runs), i, j)
            every = math.ceil(len(steps) / _MAX_MARKERS) or None
            for one in values:
                axes.plot(steps, one, linewidth=2 / len(values), markevery=every, **look)
            if len(values) == 2:
                axes.fill_between(
                    steps, values[0], values[1], color=look["color"], alpha=0.2, linewidth=0
                )
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)


def _look(num_runs: int, run: int, partition: int) -> dict[str, Any]:
    """Tell the partitions of one run apart by color, or several runs, and partitions by dashes."""
    return style.look(partition) if num_runs == 1 else style.look(run, _DASHES[partition])


def _add_legend(
    figure: Figure, runs: Sequence[Run], shown: Sequence[str], also: str | None = None
) -> None:
    """Say below the figure which curve is which, and which bracket is open at its last step.

    Args:
        figure: What was drawn.
        runs: Of which.
        shown: Their partitions.
        also: One whose bracket all that is drawn is compared with.
    """
    partitions = [f"{GEOMETRY_OF.get(n, 'blockwise')} ({style.literal(n)})" for n in shown]
    if len(runs) == 1:
        looks = [_look(1, 0, j) for j in range(len(shown))]
        marks = [_mark(runs[0], (name, also)) for name in shown]
        labels = [label + mark for label, mark in zip(partitions, marks, strict=True)]
    else:
        looks = [_look(len(runs), i, 0) for i in range(len(runs))]
        labels = [style.literal(run.name) + _mark(run, (*shown, also)) for run in runs]
        if len(shown) > 1:
            looks += [{"color": "black", "linestyle": dash} for dash in _DASHES]
            labels += partitions
    handles = [Line2D([], [], **look) for look in looks]
    num_columns = 4 if max(map(len, labels)) < 25 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, frameon=False)


def _mark(run: Run, partitions: Sequence[str | None]) -> str:
    """Mark a run if the bracket of one of the partitions had not converged when last measured."""
    for name in partitions:
        points = () if name is None else run.scalars.get(quantities.CONVERGED.of(name), ())
        *_, last = (1.0, *(value for _, value in points))
        if last == 0:
            return ", not converged"
    return ""
