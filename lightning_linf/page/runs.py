"""Find runs in folders, and read what the monitors wrote there."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_linf import record
from lightning_linf.record import Record
from lightning_linf.tags import PREFIX
from lightning_linf.tensorboard import PLUGIN_NAME
from lightning_linf.tensorboard.table import (
    Array,
    Metadata,
    Table,
    lay_out,
    stack,
    tag_of_record,
)

_EVENTS = "events.out.tfevents.*"


class RunError(ValueError):
    """A folder that holds nothing to report on."""


@dataclass
class Run:
    """Everything that was measured in one training."""

    name: str
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # tag -> points
    tables: dict[str, Table] = field(default_factory=dict)  # by tag
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say what was left out."""
        self.notes.append(f"{self.name}: {text}")


def load(folders: Sequence[Path]) -> list[Run]:
    """Read every run in or below the folders that has geometry data, or notes on broken ones.

    Where `geometry.jsonl` is, it is read and event files are not.

    Raises:
        RunError: If a folder does not exist, or none of them holds geometry data.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"expected RUN_DIR to be a folder, got {str(folder)!r}.")
    runs = []
    for name, folder in _find(folders).items():
        path = folder / record.FILE_NAME
        run = _from_jsonl(name, path) if path.is_file() else _from_events(name, folder)
        if run.scalars or run.tables or run.notes:
            runs.append(run)
    if not any(run.scalars or run.tables for run in runs):
        notes = "".join(f" {note}." for run in runs for note in run.notes)
        raise RunError(
            f"expected geometry data in {', '.join(map(str, folders))}, got none. Train with the "
            f"monitors of lightning_linf.callbacks and any logger.{notes}"
        )
    return runs


def _find(folders: Iterable[Path]) -> dict[str, Path]:
    """Give the folders of runs by what tells them apart."""
    files = (
        path
        for folder in folders
        for pattern in (record.FILE_NAME, _EVENTS)
        for path in folder.resolve().rglob(pattern)
    )
    found = sorted({path.parent for path in files})
    base = Path(os.path.commonpath(found)) if found else Path()
    if base in found:  # which needs a name, too
        base = base.parent
    names = (os.fsencode(os.path.relpath(folder, base)) for folder in found)
    # Not all bytes of a file system are text, and a page is.
    return dict(
        zip((name.decode("utf-8", "backslashreplace") for name in names), found, strict=True)
    )


def _from_jsonl(name: str, path: Path) -> Run:
    records, notes = record.read(path)
    run = Run(name)
    for note in notes:
        run.note(note)
    by_tag: dict[str, list[Record]] = defaultdict(list)
    for entry in records:
        for tag, value in entry.scalars.items():
            run.scalars.setdefault(tag, []).append((entry.step, value))
        if entry.columns:
            by_tag[entry.tag].append(entry)
    for tag, entries in by_tag.items():
        tables = []
        for entry in entries:
            try:
                tables.append((entry.step, *lay_out(entry)))
            except ValueError:  # rows of several widths, or none
                continue
        if num_broken := len(entries) - len(tables):
            run.note(f"{tag}: {num_broken} records that make no table left out")
        if tables:
            metadata = tables[-1][2]  # of the present parameters, if they have changed
            present = [(step, array) for step, array, columns in tables if columns == metadata]
            _add_table(run, tag, metadata, present, num_other=len(tables) - len(present))
    return run


def _from_events(name: str, folder: Path) -> Run:
    # Not at the top: runs of other loggers can be read without tensorboard.
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        run = Run(name)
        run.note(
            f"has event files and no {record.FILE_NAME}. To read them: "
            "pip install 'lightning-linf[tensorboard]'"
        )
        return run
    everything = {"scalars": 0, "tensors": 0}
    events: Any = EventAccumulator(str(folder), size_guidance=everything)
    events.Reload()
    run = Run(name)
    for tag in events.Tags()["scalars"]:
        if tag.startswith(PREFIX):
            run.scalars[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    by_tag: dict[str, list[tuple[Metadata, Sequence[Any]]]] = defaultdict(list)
    for series_tag in events.Tags()["tensors"]:
        data = events.SummaryMetadata(series_tag).plugin_data
        if data.plugin_name == PLUGIN_NAME:
            tag = tag_of_record(series_tag)
            try:
                metadata = Metadata.from_event(data.content)
            except ValueError as error:  # of another schema, or broken
                run.note(f"{tag} left out: {error}")
            else:
                by_tag[tag].append((metadata, events.Tensors(series_tag)))
    for tag, series in by_tag.items():
        *other, present = sorted(series, key=lambda one: one[1][-1].wall_time)
        num_other = sum(len(tensors) for _, tensors in other)
        _add_table(run, tag, present[0], _decoded(run, tag, present[1]), num_other)
    return run


def _decoded(run: Run, tag: str, events: Sequence[Any]) -> list[tuple[int, Any]]:
    from tensorboard.util.tensor_util import make_ndarray

    rows = []
    for event in events:
        try:
            rows.append((event.step, make_ndarray(event.tensor_proto)))
        except (ValueError, TypeError):
            continue
    if num_broken := len(events) - len(rows):
        run.note(f"{tag}: {num_broken} events that cannot be read left out")
    return rows


def _add_table(
    run: Run,
    tag: str,
    metadata: Metadata,
    rows: Sequence[tuple[int, Array | np.ndarray]],
    num_other: int,
) -> None:
    table, note = stack(metadata, rows)
    if table.steps:
        run.tables[tag] = table
    if note:
        run.note(f"{tag}: {note}")
    if num_other:
        run.note(f"{tag}: {num_other} records of other parameters left out")
