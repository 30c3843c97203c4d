"""The figures of parameter tensors and of the gradient's spread, with one part for each run."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_linf import figure_style as style
from lightning_linf.panels.table import Column, Table
from lightning_linf.runs.run import Run

_Found = list[tuple[int, Run, Table, Column]]  # the first is the run's number, for its color
_Values = npt.NDArray[np.float64]
_MAX_NAMES = 40  # beside an axis


def draw_heatmap(runs: Sequence[Run]) -> Figure | None:
    """Draw a quantity of each tensor over steps as colors; None if no run has tables."""
    found = _find(runs, is_fan=False)
    if not found:
        return None
    figure, parts = _grid_of_tensors(found, "Layers over steps")
    low, high = _limits([_single(table, column) for _, _, table, column in found])
    for axes, (_, run, table, column) in zip(parts, found, strict=True):
        values = np.ma.masked_invalid(_single(table, column).T)
        borders = np.arange(len(values) + 1) - 0.5
        mesh = axes.pcolormesh(
            _edges(table.steps), borders, values, vmin=low, vmax=high, rasterized=True
        )
        axes.set(title=style.literal(run.name), xlabel="optimizer step")
    figure.colorbar(mesh, ax=parts, label=found[0][3].label, pad=0.01)
    return figure


def draw_bars(runs: Sequence[Run]) -> Figure | None:
    """Draw a quantity of each tensor at the last step as bars; None if no run has tables."""
    found = _find(runs, is_fan=False)
    if not found:
        return None
    figure, parts = _grid_of_tensors(found, "Layers at the last measured step")
    low, high = _limits([_single(table, column)[-1] for _, _, table, column in found])
    for axes, (number, run, table, column) in zip(parts, found, strict=True):
        values = _single(table, column)[-1]
        lengths = np.where(np.isfinite(values), values, 0.0)
        axes.barh(np.arange(len(values)), lengths, color=style.color(number))
        title = f"{style.literal(run.name)}, step {table.steps[-1]:,}"
        limits = (min(0.0, low), max(0.0, high) * 1.05 or 1.0)
        axes.set(title=title, xlabel=column.label, xlim=limits)
        axes.grid(axis="x", alpha=0.3)
    return figure


def draw_fan(runs: Sequence[Run]) -> Figure | None:
    """Draw how the sizes of the gradient's entries are spread; None if no run has quantiles."""
    found = _find(runs, is_fan=True)
    if not found:
        return None
    title = "Spread of the gradient: median of log₁₀|g|, and bands of 50 %, 90 %, 98 %"
    figure, parts = style.grid(len(found), title, 3.6, 3.2)
    for axes, (number, run, table, column) in zip(parts, found, strict=True):
        rows = [*table.metadata.tensors, *(["all parameters"] if table.metadata.whole else [])]
        levels = table.values[:, -1, table.metadata.slice_of(column.name)].T  # of the last row
        color = style.color(number)
        for lower, upper in zip(levels, levels[::-1][: len(levels) // 2], strict=False):
            axes.fill_between(table.steps, lower, upper, color=color, alpha=0.2, linewidth=0)
        axes.plot(table.steps, levels[len(levels) // 2], color=color, linewidth=2)
        title = f"{style.literal(run.name)}, {style.literal(rows[-1])}"
        axes.set(title=title, xlabel="optimizer step", ylabel="log₁₀|g|")
        axes.grid(alpha=0.3)
        axes.sharey(parts[0])
    return figure


def _find(runs: Sequence[Run], *, is_fan: bool) -> _Found:
    """Choose for each run the table and column that the panel shows at first."""
    found = []
    for number, run in enumerate(runs):
        offered = [
            (number, run, table, column)
            for table in run.tables.values()
            for column in table.metadata.columns
            if (bool(column.levels) if is_fan else column.width == 1)
        ]
        found += sorted(offered, key=lambda one: one[3].name != "density")[:1]
    return found


def _grid_of_tensors(found: _Found, title: str) -> tuple[Figure, list[Axes]]:
    """Make a part for each run, with the names of its tensors from top to bottom."""
    most = max(len(table.metadata.tensors) for _, _, table, _ in found)
    figure, parts = style.grid(len(found), title, 4.0, 1.2 + 0.15 * min(most, _MAX_NAMES))
    for i, (axes, (_, _, table, _)) in enumerate(zip(parts, found, strict=True)):
        names = table.metadata.tensors
        rows = range(0, len(names), math.ceil(len(names) / _MAX_NAMES))
        is_beside_them = i % 3 > 0 and names == found[i - 1][2].metadata.tensors
        labels = ["" if is_beside_them else style.literal(names[row]) for row in rows]
        axes.set_yticks(rows, labels, fontsize=6)
        axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, parts


def _single(table: Table, column: Column) -> _Values:
    """Take a column of single numbers out of a table. Shape: (steps, tensors)."""
    where = table.metadata.slice_of(column.name).start
    return table.values[:, : len(table.metadata.tensors), where].astype(np.float64)


def _limits(arrays: Sequence[_Values]) -> tuple[float, float]:
    """Give the least and the largest finite number, so that all runs share a scale."""
    numbers = np.concatenate([array[np.isfinite(array)] for array in arrays])
    return (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 1.0)


def _edges(steps: Sequence[int]) -> _Values:
    """Put the borders of columns half way between measured steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (np.array(steps[1:]) + np.array(steps[:-1])) / 2
    return np.array([2 * steps[0] - middle[0], *middle, 2 * steps[-1] - middle[-1]])
