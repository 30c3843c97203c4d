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
from lightning_linf.tensorboard.table import Array, Metadata, Table, lay_out, stack

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


def load(folders: Sequence[Path]) -> list[Run]:
    """Read every run in or below the folders that has geometry data.

    Where `geometry.jsonl` is, it is read and event files are not.

    Raises:
        RunError: If a folder does not exist, or none of them holds geometry data.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"expected RUN_DIR to be a folder, got {str(folder)!r}.")
    found = _find(folders)
    base = os.path.commonpath(found) if len(found) > 1 else found[0].parent if found else ""
    runs = []
    for folder in found:
        name = folder.name if folder == Path(base) else os.path.relpath(folder, base)
        path = folder / record.FILE_NAME
        run = _from_jsonl(name, path) if path.is_file() else _from_events(name, folder)
        if run.scalars or run.tables:
            runs.append(run)
    if not runs:
        raise RunError(
            f"expected geometry data in {', '.join(map(str, folders))}, got none. Train with the "
            "monitors of lightning_linf.callbacks and any logger."
        )
    return runs


def _find(folders: Iterable[Path]) -> list[Path]:
    files = (
        path
        for folder in folders
        for pattern in (record.FILE_NAME, _EVENTS)
        for path in folder.resolve().rglob(pattern)
    )
    return sorted({path.parent for path in files})


def _from_jsonl(name: str, path: Path) -> Run:
    records, notes = record.read(path)
    run = Run(name, notes=[f"{name}: {note}" for note in notes])
    by_tag: dict[str, list[Record]] = defaultdict(list)
    for entry in records:
        for tag, value in entry.scalars.items():
            run.scalars.setdefault(tag, []).append((entry.step, value))
        if entry.columns:
            by_tag[entry.tag].append(entry)
    for tag, entries in by_tag.items():
        tables = [(entry.step, *lay_out(entry)) for entry in entries]
        metadata = tables[-1][2]  # of the present parameters, if they have changed
        _add_table(run, tag, metadata, [(s, a) for s, a, m in tables if m == metadata])
        if other := sum(m != metadata for _, _, m in tables):
            run.notes.append(f"{name}: {tag}: {other} records of other parameters left out")
    return run


def _from_events(name: str, folder: Path) -> Run:
    # Not at the top: runs of other loggers can be read without tensorboard.
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise RunError(
            f"{folder} has event files and no {record.FILE_NAME}. To read them: "
            "pip install 'lightning-linf[tensorboard]'"
        ) from error
    everything = {"scalars": 0, "tensors": 0}
    events: Any = EventAccumulator(str(folder), size_guidance=everything)
    events.Reload()
    run = Run(name)
    for tag in events.Tags()["scalars"]:
        if tag.startswith(PREFIX):
            run.scalars[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["tensors"]:
        data = events.SummaryMetadata(tag).plugin_data
        if data.plugin_name == PLUGIN_NAME:
            _add_event_table(run, tag, data.content, events.Tensors(tag))
    return run


def _add_event_table(run: Run, tag: str, content: bytes, events: Iterable[Any]) -> None:
    from tensorboard.util.tensor_util import make_ndarray

    rows, num_broken = [], 0
    try:
        metadata = Metadata.from_event(content)
    except ValueError as error:  # of another schema, or broken
        run.notes.append(f"{run.name}: {tag} left out: {error}")
        return
    for event in events:
        try:
            rows.append((event.step, make_ndarray(event.tensor_proto)))
        except (ValueError, TypeError):
            num_broken += 1
    if num_broken:
        run.notes.append(f"{run.name}: {tag}: {num_broken} events that cannot be read left out")
    _add_table(run, tag, metadata, rows)


def _add_table(
    run: Run, tag: str, metadata: Metadata, rows: Sequence[tuple[int, Array | np.ndarray]]
) -> None:
    table, note = stack(metadata, rows)
    if table.steps:
        run.tables[tag] = table
    if note:
        run.notes.append(f"{run.name}: {tag}: {note}")
