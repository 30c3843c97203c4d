"""Read the losses and learning rates that a training has logged by itself."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.quantities import PREFIX
from lightning_linf.runs.run import Run
from lightning_linf.runs.series import Points

CSV_NAME = "metrics.csv"  # of Lightning's CSVLogger
_STEP = "step"
_MOST_STEPS = 2**53  # above it a float does not tell one step from the next


def keep_own(run: Run, scalars: dict[str, Points]) -> None:
    """Keep those of a run's scalars that stand beside its geometry."""
    tags = own_scalars(tag for tag in scalars if not tag.startswith(PREFIX))
    run.own.update({tag: scalars[tag] for kind in tags.values() for tag in kind})


def count_from_zero(run: Run) -> None:
    """Number the steps of a run's own scalars as its records do, which know where those begin."""
    first = max((table.metadata.own_steps_from for table in run.tables.values()), default=0)
    if first:
        for points in run.own.values():
            points.move(-first)


def read_csv(run: Run, path: Path) -> None:
    """Add the losses and learning rates of a CSVLogger, which has a column for each scalar."""
    scalars: defaultdict[str, Points] = defaultdict(Points)
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                step = _number(row.get(_STEP))
                if abs(step) < _MOST_STEPS:
                    _add(scalars, int(step), row.items())
        except csv.Error as error:
            run.note(f"{path.name} cannot be read from line {rows.line_num} on: {error}")
    keep_own(run, scalars)


def _add(
    scalars: defaultdict[str, Points], step: int, cells: Iterable[tuple[object, object]]
) -> None:
    for tag, cell in cells:
        if isinstance(tag, str) and tag != _STEP and cell not in (None, ""):
            scalars[tag].add(step, _number(cell))


def _number(cell: object) -> float:
    """Read a cell; NaN if it is no number, as in a line that was cut off."""
    try:
        return float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return math.nan
