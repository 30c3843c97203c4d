"""The tables of a comparison: the sweep, and the other seeds with the geometry."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table

from comparison.records import Record, ends, own_smoothness
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
    for optimizer, geometry, train_loss, _, *measured in seeds_rows(record):
        table.add_row(optimizer, geometry, train_loss, *measured)
    table.caption = "± sd over seeds; geometry: mean, in the coordinates that the optimizer saw"
    return table


def seeds_rows(record: Record) -> list[list[str]]:
    """Write the cells of :func:`seeds_table`, and the validation loss, for which it has no room."""
    return [
        [
            variant["optimizer"],
            variant["geometry"],
            _spread([outcome["train_loss"] for outcome in variant["seeds"]]),
            _spread([outcome["val_loss"] for outcome in variant["seeds"]]).split(" ±")[0],
            mean_text(ends(variant, "one_one_norm_per_param")),
            mean_text(ends(variant, "lambda_max")),
            mean_text(own_smoothness(variant)),
        ]
        for variant in record["variants"]
    ]


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
    return f"{statistics.fmean(finite):.3f} ±{deviation_text(finite)}"


def deviation_text(values: Sequence[float]) -> str:
    """Write a standard deviation, which a single value does not have."""
    return f"{statistics.stdev(values):.3f}" if len(values) > 1 else "?"


def mean_text(values: Sequence[float]) -> str:
    """Write the mean of a quantity."""
    return f"{statistics.fmean(values):.3g}" if values else "-"
