"""The figures of the recipes, as PNG files.

They are made from a bare matplotlib `Figure`, which needs no display.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from comparison.records import Record, ends, losses, own_smoothness, smoothness_at

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
    """Draw the final training loss of every seed against the geometry of the loss.

    Each panel has one measure of it: where the run ended, and in the last one where Adam's did.
    """
    found = {(v["optimizer"], v["geometry"]): v for v in record["variants"]}
    adam = found.get(("adam", "coordinate"))
    quantities: list[tuple[Callable[[Record], list[Any]], str]] = [
        (lambda variant: ends(variant, "one_one_norm_per_param"), "(1,1)-norm / d"),
        (lambda variant: ends(variant, "lambda_max"), "lambda_max"),
        (own_smoothness, "H(Phi) / d of the optimizer's Phi"),
    ]
    if adam is not None and None not in losses(adam):
        there = "the same where Adam ended"
        quantities.append((lambda v: _finite(smoothness_at(adam, v), losses(v)), there))
    figure = Figure(figsize=(2 + 2.9 * len(quantities), 4.4), layout="constrained")
    panels = figure.subplots(1, len(quantities), sharey=True)
    for axes, (read, label) in zip(panels, quantities, strict=True):
        for i, variant in enumerate(record["variants"]):
            axes.plot(
                read(variant),
                _finite(losses(variant), losses(variant)),
                linestyle="none",
                marker=_MARKERS[i % len(_MARKERS)],
                color=f"C{i % 10}",
                fillstyle="none" if i >= 10 else "full",
                label=f"{variant['optimizer']} ({variant['geometry']})",
            )
        axes.set(xscale="log", xlabel=label)
        # On less than a decade the default labels 2, 3, 4 and 6, which overlap.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("training loss at the end")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="x-small")
    _save(figure, path)


def _finite(values: Sequence[Any], losses: Sequence[Any]) -> list[Any]:
    """Keep the values of seeds that did not diverge."""
    return [value for value, loss in zip(values, losses, strict=True) if loss is not None]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
