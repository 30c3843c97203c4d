"""What rivals.py keeps of a run, for the tables of docs/compared.md."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from stopwatch import RESULTS


@dataclass(frozen=True)
class Row:
    """One competitor in one part; what was not measured is None."""

    name: str
    label: str
    median: float | None = None  # seconds
    least: float | None = None
    memory: int | None = None  # bytes, at most at once beyond those before
    value: list[float] | None = None  # of an eigenvalue, or both ends of it
    error: float | None = None  # relative
    failure: str = ""


@dataclass(frozen=True)
class Result:
    """A run of all parts."""

    versions: str
    place: str
    date: str
    commit: str
    rounds: int
    parts: dict[str, list[Row]]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` has written."""
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: [Row(**row) for row in rows] for part, rows in content.pop("parts").items()}
        return cls(**content, parts=parts)


def result_path(device: str) -> Path:
    """Name the file of a device's result."""
    return RESULTS / f"rivals-{device}.json"
