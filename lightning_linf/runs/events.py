"""Read TensorBoard's event files, also where they are damaged in places."""

import os
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lightning_linf.panels.table import REPORT, SHOWN_REPORT, Metadata, fits, tag_of_record
from lightning_linf.quantities import PREFIX
from lightning_linf.runs.own import keep_own
from lightning_linf.runs.run import Run
from lightning_linf.runs.series import Places, Points, Series
from lightning_linf.tensorboard import PLUGIN_NAME
from lightning_linf.tensorboard.tensors import decode, decode_report

_HEAD = struct.Struct("<QI")  # length of a record, and a checksum of that
_CHECKSUM = struct.Struct("<I")  # of the record, which it follows
_WINDOW = 2**20  # bytes to search at a time
_SCALAR_BYTES = 2**12  # an event with a scalar has some hundred; checksums of long ones take long


class EventFile:
    """The events of one file, one at a time. Damaged places are passed over and counted.

    Args:
        path: The file.
        most_bytes: Events that are longer are passed over, unread. None: none is.
    """

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._damaged: list[int] = []  # for each damaged place, its number of bytes
        self._torn = (
            0  # bytes of an unfinished last record: a kill, or a training that still writes
        )

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Give each whole event, with its place: the number of bytes before it in the file."""
        # Not at the top: runs of other loggers can be read without tensorboard.
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        with open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            place = 0
            while place < size:
                file.seek(place)
                head = file.read(_HEAD.size)
                length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, 0)
                if len(head) == _HEAD.size and masked_crc32c(head[:8]) != checksum:
                    following = _next_head(file, place + 1, size, masked_crc32c)
                    self._damaged.append(following - place)
                    place = following
                    continue
                end = place + _HEAD.size + length + _CHECKSUM.size
                if end > size:
                    self._torn = size - place
                    return
                if self._most_bytes is not None and length > self._most_bytes:
                    place = end
                    continue
                data = file.read(length)
                is_whole = file.read(_CHECKSUM.size) == _CHECKSUM.pack(masked_crc32c(data))
                event = _parse(data) if is_whole else None
                if event is None:
                    self._damaged.append(end - place)
                else:
                    yield place, event
                place = end

    def at(self, place: int) -> Any:
        """Read an event once more; None if it is no longer there."""
        with open(self._path, "rb") as file:
            file.seek(place)
            head = file.read(_HEAD.size)
            return _parse(file.read(_HEAD.unpack(head)[0])) if len(head) == _HEAD.size else None

    def notes(self, is_ours: bool) -> list[str]:
        """Say what could not be read.

        Args:
            is_ours: Whether the run has data of this package. If not, an unfinished end is no loss.
        """
        notes, name = [], self._path.name
        if self._damaged:
            places = f"{len(self._damaged)} place{'s' if len(self._damaged) > 1 else ''}"
            notes.append(
                f"{name} is damaged: {sum(self._damaged):,} bytes in {places} could not be read"
            )
        if self._torn and is_ours:
            notes.append(
                f"{name} is not whole: its last record, {self._torn:,} bytes, could not be read"
            )
        return notes


def read_events(run: Run, paths: Sequence[Path]) -> None:
    """Add all that event files of one run hold, with notes on what cannot be read.

    Args:
        run: Gets the scalars and tables of this package.
        paths: The files, in the order of training.
    """
    from tensorboard.util.tensor_util import make_ndarray

    def read(tag: str, file: int, place: int) -> Any:
        event = files[file].at(place)
        values = () if event is None else event.summary.value
        tensors = [value.tensor for value in values if value.tag == tag]
        return decode(tensors[-1], make_ndarray) if tensors else None

    files = [EventFile(path) for path in paths]
    scalars: defaultdict[str, Points] = defaultdict(Points)
    others: defaultdict[str, Points] = defaultdict(Points)  # the training's own
    tables: dict[str, Series] = {}  # by tag of the series
    reports = Places()
    unknown: dict[str, str] = {}  # by tag of the series, what is wrong with its metadata
    num_broken: Counter[str] = Counter()
    for number, file in enumerate(files):
        for place, event in file:
            if event.session_log.status == event.session_log.START:  # training went back there
                for points in (*scalars.values(), *others.values()):
                    points.cut(event.step)
                for places in (*tables.values(), reports):
                    places.cut(event.step)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    known = scalars if value.tag.startswith(PREFIX) else others
                    known[value.tag].add(event.step, value.simple_value, event.wall_time)
                elif value.HasField("tensor") and value.tag == SHOWN_REPORT:
                    reports.add(event.step, number, place)
                elif value.HasField("tensor") and _is_known(value, tables, unknown):
                    series = tables[value.tag]
                    series.latest = event.wall_time
                    if fits(series.metadata, decode(value.tensor, make_ndarray)):
                        series.add(event.step, number, place)
                    else:
                        num_broken[tag_of_record(value.tag)] += 1
    run.scalars.update({tag: points for tag, points in scalars.items() if points})
    keep_own(run, others)
    for note in (note for file in files for note in file.notes(bool(scalars or tables))):
        run.note(note)
    for tag, error in unknown.items():
        run.note(f"{tag_of_record(tag)} left out: {error}")
    for tag, count in num_broken.items():
        run.note(f"{tag}: {count} broken record{'s' if count > 1 else ''} left out")
    by_tag: defaultdict[str, list[Series]] = defaultdict(list)
    for series in tables.values():
        by_tag[tag_of_record(series.tag)].append(series)
    for tag, kinds in by_tag.items():
        run.add_table(tag, kinds, lambda series, *place: read(series.tag, *place))
    run.add_report(reports, lambda *place: decode_report(read(SHOWN_REPORT, *place)))


def read_own_events(run: Run, paths: Sequence[Path]) -> None:
    """Add the losses and learning rates of event files, of which nothing else is read."""
    scalars: defaultdict[str, Points] = defaultdict(Points)
    for path in paths:
        for _, event in EventFile(path, most_bytes=_SCALAR_BYTES):
            if event.session_log.status == event.session_log.START:
                for points in scalars.values():
                    points.cut(event.step)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag].add(event.step, value.simple_value, event.wall_time)
    keep_own(run, scalars)


def _is_known(value: Any, tables: dict[str, Series], unknown: dict[str, str]) -> bool:
    """Whether a tensor belongs to a table of this package, as the first of its tag says."""
    data = value.metadata.plugin_data
    if value.tag in tables or value.tag in unknown or data.plugin_name != PLUGIN_NAME:
        return value.tag in tables
    if value.tag.endswith(REPORT):  # of a monitor that is not shown
        return False
    try:
        tables[value.tag] = Series(value.tag, Metadata.from_event(data.content))
    except ValueError as error:  # of another schema, or broken
        unknown[value.tag] = str(error)
    return value.tag in tables


def _next_head(file: BinaryIO, place: int, size: int, checksum_of: Callable[[bytes], int]) -> int:
    """Find the next place with a length and its checksum; the end of the file without one."""
    while place + _HEAD.size <= size:
        file.seek(place)
        data = file.read(_WINDOW + _HEAD.size - 1)
        num_places = len(data) - _HEAD.size + 1
        digits = np.frombuffer(data, dtype=np.uint8).astype(np.uint64)
        lengths = sum(digits[i : i + num_places] << np.uint64(8 * i) for i in range(8))
        # A checksum takes long, so only places are tried whose length fits into the file.
        for at in np.flatnonzero((lengths > 0) & (lengths < size - place)).tolist():
            if checksum_of(data[at : at + 8]) == _HEAD.unpack_from(data, at)[1]:
                return place + int(at)
        place += _WINDOW
    return size


def _parse(data: bytes) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        return Event.FromString(data)
    except Exception:  # protobuf raises its own kinds where a record is no event
        return None
