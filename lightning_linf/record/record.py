"""One measurement: scalars, and a table with a row for each parameter tensor."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_linf import json_numbers

SCHEMA_VERSION = 2  # 1 had no `report`
Row = float | list[float]  # one number, or several (quantiles)


class SchemaError(ValueError):
    """A record that a later version of this package has written."""


class LogHistogram(NamedTuple):
    """Counts of non-zero finite entries by log10 of their size."""

    edges: Sequence[float]  # of log10|g|, one more than counts
    counts: Sequence[int]


@dataclass(frozen=True)
class Record:
    """What one monitor measured at one step: one line of ``geometry.jsonl``.

    Example:
        >>> record = Record(
        ...     step=9,
        ...     tag="geometry/heterogeneity_per_tensor",
        ...     scalars={"geometry/density": 0.5},
        ...     tensors=["0.weight", "0.bias"],
        ...     columns={"density": [0.25, float("nan")]},
        ... )
        >>> print(record.to_line(), end="")  # doctest: +NORMALIZE_WHITESPACE
        {"step": 9, "schema": 2, "tag": "geometry/heterogeneity_per_tensor",
         "scalars": {"geometry/density": 0.5}, "tensors": ["0.weight", "0.bias"],
         "columns": {"density": [0.25, "NaN"]}, "whole": {}}
    """

    step: int
    tag: str  # of the monitor, such as "geometry/smoothness_per_tensor"
    scalars: Mapping[str, float]  # by tag
    tensors: Sequence[str]  # names of the T parameter tensors, the table's rows
    columns: Mapping[str, Sequence[Row]]  # by name, T rows each
    whole: Mapping[str, Row] = field(default_factory=dict)  # the same of all parameters together
    histogram: LogHistogram | None = None  # of all entries of the gradient
    # What `GeometryReport.to_dict` made, without `per_tensor`: JSON types that are kept exactly,
    # and looked into only by who reads the report.
    report: Any = None
    restart: int = 0  # how many times the processes had been started again, as torchrun does it
    own_steps_from: int = 0  # the number of the first step in what the training itself logs
    wall_time: float | None = None  # when it was measured, in seconds since 1970

    def to_line(self) -> str:
        """Write as one line of strict JSON, ``step`` first; inf and NaN become strings."""
        content: dict[str, Any] = {
            "step": self.step,
            "schema": SCHEMA_VERSION,
            "tag": self.tag,
            "scalars": {tag: json_numbers.encode(value) for tag, value in self.scalars.items()},
            "tensors": list(self.tensors),
            "columns": {
                name: [_encode_row(row) for row in rows] for name, rows in self.columns.items()
            },
            "whole": {name: _encode_row(row) for name, row in self.whole.items()},
        }
        if self.histogram is not None:
            content["histogram"] = {
                "edges": [_short(edge) for edge in self.histogram.edges],
                "counts": list(self.histogram.counts),
            }
        if self.report is not None:
            content["report"] = self.report
        if self.restart:
            content["restart"] = self.restart
        if self.own_steps_from:
            content["own_steps_from"] = self.own_steps_from
        if self.wall_time is not None:
            content["wall_time"] = round(self.wall_time, 3)
        return json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Record":
        """Undo :meth:`to_line`.

        Raises:
            SchemaError: If a later version wrote it.
            ValueError: If it is anything else than a record.
        """
        try:
            content = json.loads(line)
        except RecursionError as error:
            raise ValueError("expected an object, got too deep a nesting") from error
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
        schema = content.get("schema")
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise SchemaError(f"schema {schema} is newer than {SCHEMA_VERSION}")
        try:
            return cls._decode(content)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"expected a record, got {type(error).__name__}: {error}") from error

    @classmethod
    def _decode(cls, content: Mapping[str, Any]) -> "Record":
        tensors = [str(name) for name in content["tensors"]]
        columns = {
            name: [_decode_row(row) for row in rows] for name, rows in content["columns"].items()
        }
        for name, rows in columns.items():
            if len(rows) != len(tensors):
                raise ValueError(f"expected {len(tensors)} rows of {name!r}, got {len(rows)}")
        step = int(content["step"])
        if step.bit_length() > 63:
            raise ValueError("expected a step of 64 bits")
        histogram = content.get("histogram")
        return cls(
            step=step,
            tag=str(content["tag"]),
            scalars={tag: _decode(value) for tag, value in content["scalars"].items()},
            tensors=tensors,
            columns=columns,
            whole={name: _decode_row(row) for name, row in content["whole"].items()},
            histogram=histogram and LogHistogram(histogram["edges"], histogram["counts"]),
            report=content.get("report"),
            restart=int(content.get("restart", 0)),
            own_steps_from=int(content.get("own_steps_from", 0)),
            wall_time=float(content["wall_time"]) if "wall_time" in content else None,
        )


def _short(value: float) -> float:
    """Keep the digits that a float32 holds: 0.1, and not 0.10000000149011612."""
    return float(f"{value:.8g}")


def _encode_row(row: Row) -> Any:
    if isinstance(row, list):
        return [json_numbers.encode(_short(value)) for value in row]
    return json_numbers.encode(_short(row))


def _decode(value: Any) -> float:
    return json_numbers.NON_FINITE[value] if isinstance(value, str) else float(value)


def _decode_row(row: Any) -> Row:
    return [_decode(value) for value in row] if isinstance(row, list) else _decode(row)
