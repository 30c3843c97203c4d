"""The file `geometry.jsonl`: one record a line, in the order of training."""

import os
import re
from pathlib import Path

from lightning_linf.record.record import Record, SchemaError

FILE_NAME = "geometry.jsonl"
_STEP = re.compile(rb'\{"step": (\d+),')


def cut(path: Path, step: int) -> Path | None:
    """Make room for records from ``step`` on, of a training that starts or resumes there.

    Lines of that step and later ones, which an interrupted run has left, go, and so does a line
    that a kill has torn. The file of another training (``step`` is 0) is kept under another name.

    Args:
        path: The file, which need not exist.
        step: The first one to come.

    Returns:
        The new name of the file of another training, if there was one.
    """
    if not path.exists():
        return None
    if step == 0 and path.stat().st_size > 0:
        kept = _free_name(path)
        path.rename(kept)
        return kept
    end = 0
    with open(path, "rb") as file:
        for line in file:
            match = _STEP.match(line)
            # A line that is none of ours stays: `read` says what is wrong with it.
            if not line.endswith(b"\n") or (match is not None and int(match[1]) >= step):
                break
            end += len(line)
    os.truncate(path, end)
    return None


def append(path: Path, record: Record) -> None:
    """Add one record; a reader never sees more than the last line incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(record.to_line())


def read(path: Path) -> tuple[list[Record], list[str]]:
    """Read all records that are whole.

    Returns:
        The records in the order of the file, and notes on the lines that were skipped.
    """
    records, unreadable, newer = [], [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                records.append(Record.from_line(line))
            except SchemaError:
                newer += 1
            except ValueError:
                unreadable.append(number)
    notes = []
    if unreadable:
        count = f"{len(unreadable)} line{'s' if len(unreadable) > 1 else ''}"
        notes.append(f"{path.name}: skipped {count} that cannot be read (line {unreadable[0]})")
    if newer:
        notes.append(f"{path.name}: skipped {newer} records of a later version of lightning_linf")
    return records, notes


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return name
