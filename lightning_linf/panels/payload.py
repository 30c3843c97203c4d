"""What the panels read, as JSON; long trainings are thinned to what a screen can show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_linf import json_numbers
from lightning_linf.panels.table import Table, thin
from lightning_linf.partition_names import GEOMETRY_OF
from lightning_linf.quantities import ALL, PREFIX
from lightning_linf.quantity import PartitionScalar
from lightning_linf.report import ReportText
from lightning_linf.report.text import NOT_CONVERGED

MAX_STEPS = 500  # steps that the browser gets at most: about one for every two pixels


def vocabulary() -> dict[str, Any]:
    """Tell the panels what quantities and partitions are called."""
    return {
        "prefix": PREFIX,
        "quantities": {
            quantity.name: {
                "unit": quantity.unit,
                "monitor": quantity.monitors[0].name,
                "by_partition": isinstance(quantity, PartitionScalar),
            }
            for quantity in ALL
        },
        "not_converged": NOT_CONVERGED,
        "partitions": [
            {"name": name, "optimizer": optimizer} for name, optimizer in GEOMETRY_OF.items()
        ],
    }


def curves(scalars: Mapping[str, Iterable[tuple[int, float]]], most: int = MAX_STEPS) -> Any:
    """Give the steps and values of scalars by tag; of two points of one step, the later one."""
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
    """Give one quantity of all parameter tensors: a list for each step, a number for each tensor.

    Raises:
        KeyError: If there is no such column.
        ValueError: If the column has several numbers for each tensor.
    """
    where = table.metadata.slice_of(column)
    if where.stop - where.start != 1:
        raise ValueError(f"expected a column of single numbers, got {column!r}. Name a row.")
    return _matrix(table, table.values[:, : len(table.metadata.tensors), where.start])


def fan(table: Table, column: str, row: int) -> Any:
    """Give the quantiles of one row of a table: a list for each step, a number for each quantile.

    The last row is that of all parameters together, if the table has one.

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
