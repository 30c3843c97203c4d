"""What the panels read, as JSON; long trainings are thinned to what a screen can show.

Records and event files count optimizer steps from 0, as Lightning's loggers do; here they count
from 1, as ``every_n_steps`` does.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_linf import json_numbers
from lightning_linf.panels.table import Metadata, Table, thin
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
                "meaning": quantity.meaning,
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


def curves(scalars: Mapping[str, Iterable[Sequence[float]]], most: int = MAX_STEPS) -> Any:
    """Give the steps and values of scalars by tag.

    Args:
        scalars: By tag, the points (step, value), or (step, value, time) with the time in seconds,
            as they were logged. Where steps go back, a training was resumed from there, and what it
            had logged of later steps does not count; nor does it in TensorBoard's own charts.
        most: Points of each.

    Returns:
        By tag: ``steps``, ``values``, ``num_steps`` before thinning, ``seconds`` since the first
        point of all if all times are known, and ``not_finite_since``, the step of the first of the
        last values if these are NaN or infinite, else None.
    """
    points = {tag: list(each) for tag, each in scalars.items()}
    times = (time for each in points.values() for _, _, *rest in each for time in rest)
    start = min(filter(math.isfinite, times), default=0.0)  # a damaged file may hold any number
    return {tag: _curve(each, start, most) for tag, each in points.items()}


def _curve(points: Iterable[Sequence[float]], start: float, most: int) -> Any:
    last = _by_step(points)
    kept = [last[i] for i in thin(len(last), most)]
    curve = {
        "steps": [counted(step) for step, _ in kept],
        "values": [_encode(rest[0]) for _, rest in kept],
        "num_steps": len(last),
        "not_finite_since": _not_finite_since(last),
    }
    if all(len(rest) > 1 and math.isfinite(rest[1]) for _, rest in kept):
        curve["seconds"] = [round(rest[1] - start, 1) for _, rest in kept]
    return curve


def not_finite_since(points: Iterable[Sequence[float]]) -> int | None:
    """Give the step of the first of the last values if these are NaN or infinite, else None."""
    return _not_finite_since(_by_step(points))


def _not_finite_since(last: Sequence[tuple[int, Sequence[float]]]) -> int | None:
    finite = max((i for i, (_, rest) in enumerate(last) if math.isfinite(rest[0])), default=-1)
    return counted(last[finite + 1][0]) if finite + 1 < len(last) else None


def _by_step(points: Iterable[Sequence[float]]) -> list[tuple[int, Sequence[float]]]:
    """Leave out what a training had logged before it went back to the step of a later point."""
    kept: list[tuple[int, Sequence[float]]] = []
    for step, *rest in points:
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((int(step), rest))
    return kept


def counted(step: int) -> int:
    """Turn the index of an optimizer step, from 0 on, into its number as a user counts, from 1."""
    return step + 1


def report(step: int, text: ReportText) -> Any:
    """Give the text of a report that was measured at a step."""
    return {"step": counted(step), **vars(text)}


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
    return {
        "steps": [counted(step) for step in table.steps],
        "values": rows,
        "num_steps": table.num_steps,
    }


def _row(values: Any) -> Sequence[float | str]:
    if np.isfinite(values).all():
        return [float(f"{value:.6g}") for value in values.tolist()]
    return [_encode(value) for value in values.tolist()]


def _encode(value: float) -> float | str:
    """Shorten to what can be seen."""
    return json_numbers.encode(float(f"{value:.6g}"))


def listing(runs: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> Any:
    """List runs with what each holds, before anything of it is read.

    Args:
        runs: By name: ``scalars`` and ``own`` as the panels get them, ``tables`` with the metadata
            of each, and whatever else the page is to know.
        notes: On what was left out.

    Returns:
        JSON in which runs of one model share the metadata of their tables: a run has their numbers.
    """
    numbers: dict[str, int] = {}  # by content
    by_identity: dict[int, int] = {}  # runs mostly share the object itself
    known: list[Any] = []

    def number(metadata: Metadata) -> int:
        if id(metadata) not in by_identity:
            content = json.dumps(metadata.to_json())
            if content not in numbers:
                numbers[content] = len(known)
                known.append(metadata.to_json())
            by_identity[id(metadata)] = numbers[content]
        return by_identity[id(metadata)]

    listed = [
        {
            "name": name,
            **run,
            "tables": {tag: number(metadata) for tag, metadata in run["tables"].items()},
        }
        for name, run in runs.items()
    ]
    return {"runs": listed, "layouts": known, "notes": list(notes), "vocabulary": vocabulary()}
