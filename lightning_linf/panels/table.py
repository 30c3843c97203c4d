"""The table of a record as an array and metadata, and the tables of many steps as one."""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_linf import quantities
from lightning_linf.record import SCHEMA_VERSION, Record, SchemaError

Array = npt.NDArray[np.float32]
_MAX_WIDTH = 1000  # numbers in a column for each tensor: far more than quantiles need
_MOST_STEPS = 2**53  # more than any training has
_SERIES = "@"  # in the tags of event files, stands between the record's tag and a digest
REPORT = f"{_SERIES}report"  # takes the digest's place in the tag of a record's report
# Of several smoothness monitors in a training, the one without a name is shown.
SHOWN_REPORT = quantities.SMOOTHNESS.record_tag + REPORT
_BROKEN = (
    *(KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError),
    *(OverflowError, RecursionError),  # raised for huge numbers and for deep nesting
)


@dataclass(frozen=True)
class Column:
    """One quantity of each row: a number, or several if it is a list of quantiles."""

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
    """The names of the rows and columns of a table."""

    tensors: list[str]
    whole: bool  # whether there is a last row for all parameters together
    columns: list[Column]
    own_steps_from: int = 0  # the number of the first step in what the training itself logs

    def __post_init__(self) -> None:
        if not 0 <= self.own_steps_from < _MOST_STEPS:
            raise ValueError(f"expected `own_steps_from` from 0 on, got {self.own_steps_from}")

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and that of all columns together."""
        return len(self.tensors) + self.whole, sum(column.width for column in self.columns)

    def slice_of(self, name: str) -> slice:
        """Tell where in the array a column is; a KeyError if there is none of that name."""
        start = 0
        for column in self.columns:
            if column.name == name:
                return slice(start, start + column.width)
            start += column.width
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Turn into JSON types."""
        columns = [vars(column) for column in self.columns]
        content = {"tensors": self.tensors, "whole": self.whole, "columns": columns}
        return content | ({"own_steps_from": self.own_steps_from} if self.own_steps_from else {})

    def tag_of_series(self, tag: str) -> str:
        """Make the tag in event files out of a record's tag and a digest of these metadata.

        Readers of event files keep only the first metadata of a tag, so other ones need another.
        """
        digest = hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()
        return f"{tag}{_SERIES}{digest[:8]}"

    @classmethod
    @lru_cache(maxsize=256)  # runs of one model share them, and are listed again and again
    def from_event(cls, content: bytes) -> "Metadata":
        """Read the metadata of a tensor event.

        Raises:
            SchemaError: If a later version wrote them.
            ValueError: If the content is broken.
        """
        try:
            fields = json.loads(content)
            if fields["schema"] > SCHEMA_VERSION:
                raise SchemaError(
                    f"schema {fields['schema']} is newer than {SCHEMA_VERSION}: "
                    "update lightning_linf where TensorBoard runs"
                )
            columns = [Column(**column) for column in fields["columns"]]
            return cls(
                [str(name) for name in fields["tensors"]],
                bool(fields["whole"]),
                columns,
                int(fields.get("own_steps_from", 0)),
            )
        except _BROKEN as error:
            raise ValueError(f"broken metadata ({type(error).__name__}: {error})") from error


def tag_of_record(series_tag: str) -> str:
    """Undo :meth:`Metadata.tag_of_series`."""
    return series_tag.partition(_SERIES)[0]


@dataclass(frozen=True)
class Table:
    """The tables of one monitor at all its measured steps, or at some of them."""

    metadata: Metadata
    steps: list[int]
    values: Array  # (len(steps), *metadata.shape)
    num_steps: int  # how many were measured

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
    """Put the columns of a record side by side into one array of shape ``metadata.shape``."""
    parts, columns = [], []
    for name, rows in record.columns.items():
        part = np.asarray(rows, dtype=np.float32).reshape(len(record.tensors), -1)
        if record.whole:
            missing = np.full(part.shape[1], np.nan)
            last = np.atleast_1d(np.asarray(record.whole.get(name, missing), dtype=np.float32))
            part = np.concatenate([part, last[None]])
        parts.append(part)
        about = quantities.column(name)
        columns.append(Column(name, part.shape[1], about.label, about.unit, list(about.levels)))
    metadata = Metadata(list(record.tensors), bool(record.whole), columns, record.own_steps_from)
    return np.concatenate(parts, axis=1), metadata


def fits(metadata: Metadata, array: Any) -> bool:
    """Whether this is an array (and not None) of real numbers, in the shape of the metadata."""
    return np.shape(array) == metadata.shape and np.issubdtype(array.dtype, np.floating)


def stack(metadata: Metadata, rows: Iterable[tuple[int, Any]]) -> tuple[Table, str | None]:
    """Join the arrays of several steps into one table.

    Args:
        metadata: Those of all arrays.
        rows: Pairs of a step and its array, or None in place of an array that cannot be read. Where
            steps go back, a training was resumed from there, and arrays of later steps before it do
            not count.

    Returns:
        The table, and a note if some arrays did not fit and were left out.
    """
    steps: list[int] = []
    arrays: list[Array] = []
    skipped = 0
    for step, array in rows:
        if fits(metadata, array):
            kept = bisect_left(steps, step)
            steps[kept:], arrays[kept:] = [int(step)], [np.asarray(array, dtype=np.float32)]
        else:
            skipped += 1
    values = np.stack(arrays) if arrays else np.zeros((0, *metadata.shape), dtype=np.float32)
    note = f"{skipped} broken record{'s' if skipped > 1 else ''} left out" if skipped else None
    return Table(metadata, steps, values, len(steps)), note
