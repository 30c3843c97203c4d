"""The table of one record as an array with metadata, and many of them as one series."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_linf.record import SCHEMA_VERSION, Record, SchemaError
from lightning_linf.record.quantities import quantity
from lightning_linf.tags import PREFIX

Array = npt.NDArray[np.float32]
_MAX_WIDTH = 1000  # far more than quantiles need
_SERIES = "@"  # ends a record's tag in an event's
REPORT = f"{_SERIES}report"  # the same of a record's report
# Of several smoothness monitors in a training, the one without a name is shown.
SHOWN_REPORT = f"{PREFIX}smoothness_per_tensor{REPORT}"
_BROKEN = (
    *(KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError),
    *(OverflowError, RecursionError),  # of huge numbers and of deep nesting
)


@dataclass(frozen=True)
class Column:
    """One quantity: a number or, for quantiles, several in each row."""

    name: str
    width: int
    label: str
    unit: str
    levels: list[float]

    def __post_init__(self) -> None:
        kinds = {"name": str, "width": int, "label": str, "unit": str, "levels": list}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"expected `{name}` to be {kind.__name__} in {self}")
        if not 1 <= self.width <= _MAX_WIDTH:
            raise ValueError(f"expected a `width` from 1 to {_MAX_WIDTH} in {self}")
        if len(self.levels) not in (0, self.width):
            raise ValueError(f"expected a level for each of the numbers in {self}")
        if not all(type(level) in (int, float) and math.isfinite(level) for level in self.levels):
            raise ValueError(f"expected finite numbers as `levels` in {self}")


@dataclass(frozen=True)
class Metadata:
    """What the rows and columns of a table are."""

    tensors: list[str]
    whole: bool  # whether a last row is that of all parameters together
    columns: list[Column]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the sum of the columns' widths."""
        return len(self.tensors) + self.whole, sum(column.width for column in self.columns)

    def slice_of(self, name: str) -> slice:
        """Find a column; KeyError without it."""
        start = 0
        for column in self.columns:
            if column.name == name:
                return slice(start, start + column.width)
            start += column.width
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Turn into JSON types."""
        columns = [vars(column) for column in self.columns]
        return {"tensors": self.tensors, "whole": self.whole, "columns": columns}

    def tag_of_series(self, tag: str) -> str:
        """Give the tag in event files: of a tag, readers keep the first event's metadata only."""
        digest = hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()
        return f"{tag}{_SERIES}{digest[:8]}"

    @classmethod
    def from_event(cls, content: bytes) -> "Metadata":
        """Read the metadata of a tensor event.

        Raises:
            SchemaError: If a later version wrote them.
            ValueError: If they are no such metadata.
        """
        try:
            fields = json.loads(content)
            if fields["schema"] > SCHEMA_VERSION:
                raise SchemaError(
                    f"schema {fields['schema']} is newer than {SCHEMA_VERSION}: "
                    "update lightning_linf where TensorBoard runs"
                )
            columns = [Column(**column) for column in fields["columns"]]
            return cls([str(name) for name in fields["tensors"]], bool(fields["whole"]), columns)
        except _BROKEN as error:
            raise ValueError(f"broken metadata ({type(error).__name__}: {error})") from error


def tag_of_record(series_tag: str) -> str:
    """Undo :meth:`Metadata.tag_of_series`."""
    return series_tag.partition(_SERIES)[0]


@dataclass(frozen=True)
class Table:
    """Records of one kind over training."""

    metadata: Metadata
    steps: list[int]
    values: Array  # (len(steps), *metadata.shape)
    num_steps: int  # before thinning out

    def thinned(self, most: int) -> "Table":
        """Keep at most this many steps, evenly spaced."""
        kept = thin(len(self.steps), most)
        steps = [self.steps[i] for i in kept]
        return Table(self.metadata, steps, self.values[kept], self.num_steps)


def thin(num_steps: int, most: int) -> list[int]:
    """Choose evenly spaced indices, the first and the last among them.

    Example:
        >>> thin(3, most=5), thin(1000, most=3)
        ([0, 1, 2], [0, 500, 999])
    """
    if num_steps <= most:
        return list(range(num_steps))
    return [round(i * (num_steps - 1) / (most - 1)) for i in range(most)]


def lay_out(record: Record) -> tuple[Array, Metadata]:
    """Lay the columns of a record side by side. Shape: ``metadata.shape``."""
    parts, columns = [], []
    for name, rows in record.columns.items():
        part = np.asarray(rows, dtype=np.float32).reshape(len(record.tensors), -1)
        if record.whole:
            missing = np.full(part.shape[1], np.nan)
            last = np.atleast_1d(np.asarray(record.whole.get(name, missing), dtype=np.float32))
            part = np.concatenate([part, last[None]])
        parts.append(part)
        label, unit, levels = quantity(name)
        columns.append(Column(name, part.shape[1], label, unit, list(levels)))
    metadata = Metadata(list(record.tensors), bool(record.whole), columns)
    return np.concatenate(parts, axis=1), metadata


def fits(metadata: Metadata, array: Any) -> bool:
    """Whether an array, or None, has the shape of a table and real numbers."""
    return np.shape(array) == metadata.shape and np.issubdtype(array.dtype, np.floating)


def stack(metadata: Metadata, rows: Iterable[tuple[int, Any]]) -> tuple[Table, str | None]:
    """Put arrays of several steps together, in the order of steps, a later one replacing an older.

    Args:
        metadata: Of all of them.
        rows: Steps and arrays, or None for one that cannot be read.

    Returns:
        The series, and a note if some arrays did not fit and were left out.
    """
    fitting: dict[int, Array] = {}
    skipped = 0
    for step, array in rows:
        if fits(metadata, array):
            fitting[int(step)] = np.asarray(array, dtype=np.float32)
        else:
            skipped += 1
    steps = sorted(fitting)
    arrays = [fitting[step] for step in steps]
    values = np.stack(arrays) if arrays else np.zeros((0, *metadata.shape), dtype=np.float32)
    note = f"{skipped} broken record{'s' if skipped > 1 else ''} left out" if skipped else None
    return Table(metadata, steps, values, len(steps)), note
