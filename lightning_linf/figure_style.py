"""What the figures share: colors, names, a logarithmic axis, and several parts in one figure."""

import io
import math
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The page's colors in its light theme. Each goes with a marker of its own, so that it need not be
# seen to tell two curves apart; as there is one marker more than colors, 72 pairs of them differ.
PALETTE = (
    *("#2563eb", "#e0570b", "#0b8a62", "#8b35d6"),
    *("#d0246f", "#0a7f9c", "#a16207", "#64748b"),
)
_MARKERS = "osD^vPX<>"
_MAX_TICKS = 8


def color(number: int) -> str:
    """Choose the color of a run, or of a partition where there is one run."""
    return PALETTE[number % len(PALETTE)]


def look(number: int, dash: str = "-") -> dict[str, Any]:
    """Choose color, marker and dash of a curve."""
    return {"color": color(number), "marker": _MARKERS[number % len(_MARKERS)], "linestyle": dash}


def literal(name: str) -> str:
    """Make the name of a run or a parameter one that matplotlib draws.

    It fails at bytes that are no text, and leaves out of a legend what starts with an underscore.
    """
    printable = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return f" {printable}" if printable.startswith("_") else printable


class ShownFigure(Figure):
    """A figure that a notebook shows also where its own machinery, pyplot, was not started."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def grid(number: int, title: str, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of this many parts, three in a row, each of this size in inches."""
    num_columns = min(3, number)
    num_rows = math.ceil(number / num_columns)
    figure = ShownFigure(
        figsize=(width * num_columns, height * num_rows + 0.5), layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    parts = figure.subplots(num_rows, num_columns, squeeze=False).ravel().tolist()
    for unused in parts[number:]:
        unused.remove()
    return figure, parts[:number]


def make_log(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic, from one of 1, 2, 3, 5 times a power of ten to another.

    An axis of less than a decade would otherwise have one number or none.
    """
    axes.set(**{f"{which}scale": "log"})
    axes.margins(x=0 if which == "x" else None, y=0 if which == "y" else None)
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    low, high = (low, high) if low > 0 else (1.0, 10.0)  # nothing is drawn there
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 3, 5)]
    first = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    last = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    first, last = (first, last) if first < last else (max(0, first - 1), last + 1)
    shown = ticks[first : last + 1]
    axes.set(**{f"{which}lim": (shown[0], shown[-1])})
    for digits in ("1235", "13", "1"):
        chosen = [tick for tick in shown if f"{tick:e}"[0] in digits]
        if len(chosen) <= _MAX_TICKS:
            break
    chosen = chosen[:: math.ceil(len(chosen) / _MAX_TICKS)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(chosen, labels=[f"{tick:g}" for tick in chosen])
    axis.set_ticks([], minor=True)
