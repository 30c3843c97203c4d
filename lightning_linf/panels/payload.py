"""What the panels read, as JSON: thinned out where there is more than a screen can show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_linf import json_numbers
from lightning_linf.panels.table import Table, thin
from lightning_linf.report import ReportText

MAX_STEPS = 500  # of what the browser gets: about one every two pixels


def curves(scalars: Mapping[str, Iterable[tuple[int, float]]], most: int = MAX_STEPS) -> Any:
    """Turn scalars into steps and values by tag; of equal steps the later one counts."""
    result = {}
    for tag, points in scalars.items():
        last = sorted(dict(points).items())
        kept = [last[i] for i in thin(len(last), most)]
        result[tag] = {
            "steps": [step for step, _ in kept],
            "values": [_encode(value) for _, value in kept],
            "num_steps": len(last),
        }
    return result


def report(step: int, text: ReportText) -> Any:
    """Give the text of a report that was measured at a step."""
    return {"step": step, **vars(text)}


def layers(table: Table, column: str) -> Any:
    """Give a column of single numbers for all tensors: a row for each step.

    Raises:
        KeyError: If there is no such column.
        ValueError: If it holds several numbers a row.
    """
    where = table.metadata.slice_of(column)
    if where.stop - where.start != 1:
        raise ValueError(f"expected a column of single numbers, got {column!r}. Name a row.")
    return _matrix(table, table.values[:, : len(table.metadata.tensors), where.start])


def fan(table: Table, column: str, row: int) -> Any:
    """Give a column of one row (of all parameters: the last): its numbers for each step.

    Raises:
        KeyError: If there is no such column or row.
    """
    if not 0 <= row < table.metadata.shape[0]:
        raise KeyError(row)
    return _matrix(table, table.values[:, row, table.metadata.slice_of(column)])


def _matrix(table: Table, values: Any) -> Any:
    rows = [_row(row) for row in values]
    return {"steps": table.steps, "values": rows, "num_steps": table.num_steps}


def _row(values: Any) -> Sequence[float | str]:
    if np.isfinite(values).all():
        return [float(f"{value:.6g}") for value in values.tolist()]
    return [_encode(value) for value in values.tolist()]


def _encode(value: float) -> float | str:
    """Shorten to what can be seen."""
    return json_numbers.encode(float(f"{value:.6g}"))
