"""The recipes' figures, as PNG files without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MARKERS = "osD^vP*X<>hp"
_DPI = 110


def draw_quadratic(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the final loss of every method against the (1,1)-norm / d."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    norms = [row["one_one_norm_per_param"] for row in rows]
    for name, marker in zip(rows[0]["best"], _MARKERS, strict=False):
        losses = [row["best"][name]["loss"] for row in rows]
        axes.plot(norms, losses, marker=marker, label=name)
    axes.set(xscale="log", yscale="log", xlabel="(1,1)-norm / d", ylabel="final loss")
    _save(figure, axes, path)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    FigureCanvasAgg(figure).print_figure(path, dpi=_DPI, metadata={"Software": None})
