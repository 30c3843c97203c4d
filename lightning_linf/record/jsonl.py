"""The file `geometry.jsonl`: one record on each line, in the order of training."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_linf.record.record import Record, SchemaError

FILE_NAME = "geometry.jsonl"
_MAX_LINE_BYTES = 64 * 2**20  # a record of 100,000 parameter tensors takes some 20 MiB
_STEP = re.compile(rb'\{"step": (\d+),')  # how every record begins


def cut(path: Path, step: int) -> Path | None:
    """Prepare the file for a training that starts or resumes at ``step``.

    An earlier training may have gone further before it was resumed from a checkpoint. Its records
    from ``step`` on move to a new file beside this one, `geometry.1.jsonl` for example, so that
    every step stands in the file once. A last line that was cut off while being written goes.

    Args:
        path: The file, which need not exist.
        step: The first step that will be appended.

    Returns:
        The file that the records have moved to, or None if there were none.
    """
    path = _file(path)
    if not path.exists():
        return None
    if step == 0 and path.stat().st_size > 0:
        return path.rename(_free_name(path))
    end, kept = 0, None
    with open(path, "rb") as file:
        for line in file:
            match = _STEP.match(line)
            # A whole line that is no record stays where it is, and `Reader` reports it.
            if not line.endswith(b"\n") or (match is not None and int(match[1]) >= step):
                if line.endswith(b"\n"):
                    kept = _free_name(path)
                    with open(kept, "xb") as other:
                        other.write(line)
                        shutil.copyfileobj(file, other)
                break
            end += len(line)
    os.truncate(path, end)
    return kept


def append(path: Path, record: Record) -> None:
    """Append one record, on a new line even if an earlier write has stopped within a line."""
    path = _file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = record.to_line().encode("utf-8")
    with open(path, "a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


class Reader:
    """Read the records of an open file one at a time, for it may be larger than the memory.

    Iterating gives pairs of a place in the file and the record there. :meth:`at` reads the record
    at such a place again, so that a caller need not keep all of them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unreadable: list[int] = []  # numbers of lines
        self._num_newer = 0

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Give the place and the record of each line that can be read, in the order of the file."""
        self._file.seek(0)
        place, number = 0, 0
        while line := self._file.readline(_MAX_LINE_BYTES):
            number += 1
            try:
                yield place, _parse(line)
            except SchemaError:
                self._num_newer += 1
            except ValueError:
                self._unreadable.append(number)
            while not line.endswith(b"\n") and line:  # skip the rest of a line that is too long
                line = self._file.readline(_MAX_LINE_BYTES)
            place = self._file.tell()

    def at(self, place: int) -> Record:
        """Read the record at a place again, once the iteration has ended.

        Raises:
            ValueError: If the file has changed and there is no record any more.
        """
        self._file.seek(place)
        return _parse(self._file.readline(_MAX_LINE_BYTES))

    def notes(self) -> list[str]:
        """Say in words which lines the iteration has skipped so far."""
        notes, name = [], Path(self._file.name).name
        if self._unreadable:
            count = f"{len(self._unreadable)} line{'s' if len(self._unreadable) > 1 else ''}"
            first = self._unreadable[0]
            notes.append(f"{name}: skipped {count} that cannot be read (line {first})")
        if self._num_newer:
            count = f"{self._num_newer} record{'s' if self._num_newer > 1 else ''}"
            notes.append(f"{name}: skipped {count} of a later version of lightning_linf")
        return notes


def _parse(line: bytes) -> Record:
    return Record.from_line(line.decode("utf-8", "replace"))


def _file(path: Path) -> Path:
    """Follow symbolic links to the file itself; OSError if there is anything else than a file."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"expected a file or nothing at {path}, got a folder, a device or a pipe")
    return target


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(name := path.with_name(f"{path.stem}.{number}{path.suffix}")):
        number += 1
    return name
