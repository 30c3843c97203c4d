"""Find runs in folders, and read what the monitors wrote there."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_linf import record
from lightning_linf.runs.events import read_events, read_own_events
from lightning_linf.runs.folders import event_files, find
from lightning_linf.runs.own import CSV_NAME, count_from_zero, read_csv
from lightning_linf.runs.records import read_records
from lightning_linf.runs.run import Run as Run


class RunError(ValueError):
    """A folder that holds nothing to report on."""


def load(folders: Sequence[Path]) -> list[Run]:
    """Read every run in or below the folders that has geometry data, whole or broken.

    Where `geometry.jsonl` holds records, only the training's losses and learning rates are read of
    event files; and of `metrics.csv`, wherever there is one.

    Raises:
        RunError: If a folder does not exist, or none of them holds geometry data.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"expected RUN_DIR to be a folder, got {str(folder)!r}.")
    runs = [_read(name, folder) for name, folder in find(folders).items()]
    runs = [run for run in runs if run.scalars or run.tables or run.notes]
    if not any(run.scalars or run.tables for run in runs):
        notes = "".join(f" {note}." for run in runs for note in run.notes)
        raise RunError(
            f"expected geometry data in {', '.join(map(str, folders))}, got none. Train with the "
            f"monitors of lightning_linf.callbacks and any logger.{notes}"
        )
    return runs


def _read(name: str, folder: Path) -> Run:
    run = Run(name)
    path = folder / record.FILE_NAME
    try:
        if path.is_file():
            read_records(run, path)
        paths = event_files(folder)
        if paths and not run.scalars and not run.tables:
            read_events(run, paths)
        elif paths and find_spec("tensorboard") is not None:
            read_own_events(run, paths)
        if (path := folder / CSV_NAME).is_file():
            read_csv(run, path)
        count_from_zero(run)
    except ImportError:
        run.note(
            f"has event files and no records in {record.FILE_NAME}. To read them: "
            "pip install 'lightning-linf[tensorboard]'"
        )
    except OSError as error:
        run.note(f"cannot be read: {error}")
    return run
