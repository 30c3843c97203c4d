"""The tables of a comparison: the sweep, and the other seeds with the geometry."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table

from comparison.paired import paired
from comparison.records import Record, above, ends, losses, own_smoothness, why_not
from comparison.single_run import loss_text
from comparison.sweep import Rate, best, is_end
from comparison.variants import Variant


def comparison_table(results: Mapping[Variant, Sequence[Rate]], num_steps: int) -> Table:
    """Lay out one row per optimizer, at its learning rate with the least training loss."""
    table = _table(f"After {num_steps} steps, by optimizer", (
        ("optimizer", "left"), ("geometry", "left"), ("best lr", "right"),
        ("train\nloss", "right"), ("val\nloss", "right"), ("other lr:\ntrain loss", "right"),
        ("s /\nstep", "right"),
    ))  # fmt: skip
    for variant, rates in results.items():
        chosen = best(rates)
        at_end = is_end(chosen, rates)
        table.add_row(
            variant.optimizer,
            variant.geometry,
            f"{chosen.lr:g}{'*' if at_end else ''}",
            loss_text(chosen.train_loss),
            loss_text(chosen.val_loss),
            "\n".join(f"{r.lr:g}: {loss_text(r.train_loss)}" for r in rates if r is not chosen),
            f"{chosen.seconds_per_step:.3f}",
        )
        if at_end:
            table.caption = "* an end of the rates tried: a better one may lie beyond (--widen)"
    return table


def seeds_table(record: Record) -> Table:
    """Lay out one row per optimizer: its loss over the seeds, and the geometry at their ends."""
    num_seeds = record["options"]["seeds"]
    table = _table(f"At the best rate, other seeds ({num_seeds}), and the geometry at the end", (
        ("optimizer", "left"), ("geometry", "left"), ("train loss", "right"),
        ("(1,1)-\nnorm/d", "right"), ("lambda\nmax", "right"), ("H(Phi)\n/ d", "right"),
    ))  # fmt: skip
    for optimizer, geometry, _, train_loss, _, _, _, *measured in seeds_rows(record):
        table.add_row(optimizer, geometry, train_loss, *measured)
    table.caption = "± sd over seeds; geometry: mean, in the coordinates that the optimizer saw"
    return table


def seeds_rows(record: Record) -> list[list[str]]:
    """Write the cells of :func:`seeds_table`, and those for which it has no room.

    These are the rate, with a star where it is an end of those tried; the training loss less that
    of Adam with the same seed; the validation loss; and the share of steps that were clipped.
    """
    adam = next((v for v in record["variants"] if v["geometry"] == "coordinate"), None)
    return [
        [
            variant["optimizer"],
            variant["geometry"],
            f"{variant['lr']:g}{' *' if variant['is_end'] else ''}",
            _spread(losses(variant)),
            _above(variant, adam),
            _spread([outcome["val_loss"] for outcome in variant["seeds"]]).split(" ±")[0],
            f"{statistics.fmean(o['clipped_share'] for o in variant['seeds']):.0%}",
            mean_text(ends(variant, "one_one_norm_per_param")),
            mean_text(ends(variant, "lambda_max")),
            mean_text(own_smoothness(variant)),
        ]
        for variant in record["variants"]
    ]


def _above(variant: Record, adam: Record | None) -> str:
    if adam is None or variant is adam or why_not(adam) or why_not(variant):
        return "-"
    return str(paired(above(variant, adam)))


def _table(title: str, columns: Sequence[tuple[str, Any]]) -> Table:
    # Without padding and edges, so that 80 columns hold it.
    table = Table(title=title, box=HORIZONTALS, padding=0, pad_edge=False, show_edge=False)
    for name, side in columns:
        table.add_column(name, justify=side, no_wrap=True)
    return table


def _spread(losses: Sequence[float | None]) -> str:
    """Write the mean and the standard deviation, or how many diverged."""
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < len(losses) or not finite:
        return f"{len(losses) - len(finite)}/{len(losses)} diverged"
    # A single value has no deviation.
    deviation = f"{statistics.stdev(finite):.3f}" if len(finite) > 1 else "?"
    return f"{statistics.fmean(finite):.3f} ±{deviation}"


def mean_text(values: Sequence[float]) -> str:
    """Write the mean of a quantity."""
    return f"{statistics.fmean(values):.3g}" if values else "-"
