"""The file `geometry.jsonl`: one record a line, in the order of training."""

import os
import re
from pathlib import Path

from lightning_linf.record.record import Record, SchemaError

FILE_NAME = "geometry.jsonl"
_STEP = re.compile(rb'\{"step": (\d+),')


def cut(path: Path, step: int) -> Path | None:
    """Make room for records from ``step`` on, of a training that starts or resumes there.

    Lines from that step on, of a training that was interrupted or went further, move to a file of
    another name. A line that a kill has torn goes.

    Args:
        path: The file, which need not exist.
        step: The first one to come.

    Returns:
        The file that the lines have moved to, if there were any.
    """
    if not path.exists():
        return None
    if step == 0 and path.stat().st_size > 0:
        return path.rename(_free_name(path))
    end, rest = 0, b""
    with open(path, "rb") as file:
        for line in file:
            match = _STEP.match(line)
            # A line that is none of ours stays: `read` says what is wrong with it.
            if not line.endswith(b"\n") or (match is not None and int(match[1]) >= step):
                rest = line + file.read()
                break
            end += len(line)
    kept = _free_name(path) if b"\n" in rest else None
    if kept is not None:
        kept.write_bytes(rest)
    os.truncate(path, end)
    return kept


def append(path: Path, record: Record) -> None:
    """Add one record, on a line of its own even where a write has failed half way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = record.to_line().encode("utf-8")
    with open(path, "a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


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
