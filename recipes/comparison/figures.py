"""The figures of the recipes, as PNG files.

They are made from a bare matplotlib `Figure`, which needs no display.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from comparison.records import Record, above, label, own_smoothness, smoothness_at, why_not

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
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_comparison(record: Record, path: Path) -> None:
    """Draw by how much each optimizer's training loss is above Adam's with the same seed.

    One panel has the optimizers side by side, with hollow markers where the initial weights were
    moved by rounding; the others show the same against H(Phi), where the run ended and where Adam's
    run did. An optimizer of which nothing is concluded is left out, and without Adam all is.
    """
    shown = [variant for variant in record["variants"] if why_not(variant) is None]
    adam = next((variant for variant in shown if variant["geometry"] == "coordinate"), None)
    if adam is None:
        return
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    by_optimizer, *others = figure.subplots(1, 3, sharey=True)
    for i, variant in enumerate(shown):
        style = {"linestyle": "none", "marker": _MARKERS[i % len(_MARKERS)], "color": f"C{i % 10}"}
        for which, fill in (("seeds", "full"), ("shaken", "none")):
            differences = above(variant, adam, which)
            by_optimizer.plot([i] * len(differences), differences, fillstyle=fill, **style)
        for axes, read in zip(others, _readers(adam), strict=True):
            axes.plot(read(variant), above(variant, adam, "seeds"), **style)
    by_optimizer.set_xticks(range(len(shown)), map(label, shown), rotation=25, ha="right")
    by_optimizer.set_ylabel("training loss less Adam's, by seed")
    for axes, where in zip(others, ("where the run ended", "where Adam's run ended"), strict=True):
        axes.set(xscale="log", xlabel=f"H(Phi) / d, {where}")
        # On less than a decade the default labels 2, 3, 4 and 6, which overlap.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in (by_optimizer, *others):
        axes.grid(alpha=0.3)
    _save(figure, path)


def _readers(adam: Record) -> tuple[Callable[[Record], list[float]], ...]:
    return own_smoothness, lambda variant: smoothness_at(adam, variant)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
