"""What W&B, MLflow and Comet get beside scalars: settings, tables, pictures and the record file."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, WandbLogger

from lightning_linf.lightning_packages import is_either
from lightning_linf.panels.table import Metadata, lay_out
from lightning_linf.quantities import LOG10_GRAD, PREFIX
from lightning_linf.record import Record
from lightning_linf.runs.records import read_records
from lightning_linf.runs.run import Run

_FOLDER = PREFIX.rstrip("/")
_Tables = dict[str, tuple[list[str], list[list[Any]]]]  # by name, headers and rows
_PLAIN = (str, int, float, bool, type(None))


def is_service(logger: Logger) -> bool:
    """Whether a logger takes more than scalars and event files."""
    return (
        is_either(logger, WandbLogger)
        or is_either(logger, MLFlowLogger)
        or is_either(logger, CometLogger)
    )


def settings_of(monitors: Iterable[Callback]) -> dict[str, Any]:
    """Give the arguments that monitors were made with, as far as they are plain, for a config."""
    settings: dict[str, Any] = {}
    for monitor in monitors:
        parameters = inspect.signature(type(monitor)).parameters
        given = {name: getattr(monitor, name) for name in parameters if hasattr(monitor, name)}
        given.pop("name", None)
        name = getattr(monitor, "name", "")
        key = type(monitor).__name__ + (f"/{name}" if name else "")
        settings[key] = {name: value for name, value in given.items() if _is_plain(value)}
    return {_FOLDER: settings}


def show_record(logger: Logger, entry: Record) -> None:
    """Give W&B the table of a measured step, and its histogram; others get theirs in the end."""
    if not is_either(logger, WandbLogger):
        return
    import wandb

    shown: dict[str, Any] = {}
    if entry.columns:
        array, metadata = lay_out(entry)
        headers = ["parameter", *_headers(metadata)]
        shown[entry.tag] = wandb.Table(columns=headers, data=list(_rows(metadata, array)))
    if entry.histogram is not None:
        counted = (list(entry.histogram.counts), list(entry.histogram.edges))
        shown[LOG10_GRAD.tag] = wandb.Histogram(np_histogram=counted)
    logger.log_metrics(shown, step=entry.step)


def uploads(loggers: Sequence[Logger], path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """List what services get of a training that has ended, in words and as a function.

    Args:
        loggers: All of the trainer.
        path: Of `geometry.jsonl`.
    """

    @cache
    def read() -> Run:
        run = Run(path.parent.name)
        read_records(run, path)
        return run

    for logger in loggers:
        if not is_service(logger) or not path.is_file():
            continue
        name = type(logger).__name__
        yield f"upload {path.name} to {name}", partial(_upload_file, logger, path)
        if not is_either(logger, WandbLogger):  # which has one for each step
            yield f"upload tables to {name}", partial(_upload_tables, logger, read)
        if find_spec("matplotlib") is not None:
            yield f"upload pictures to {name}", partial(_upload_pictures, logger, read)


def _upload_file(logger: Logger, path: Path) -> None:
    if is_either(logger, WandbLogger):
        import wandb

        artifact = wandb.Artifact(f"{_FOLDER}-{logger.experiment.id}", type=_FOLDER)
        artifact.add_file(str(path), name=path.name)
        logger.experiment.log_artifact(artifact)
    elif is_either(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path), _FOLDER)
    elif is_either(logger, CometLogger):
        logger.experiment.log_asset(str(path), file_name=f"{PREFIX}{path.name}", overwrite=True)


def _upload_tables(logger: Logger, read: Callable[[], Run]) -> None:
    for name, (headers, rows) in _tables(read()).items():
        if is_either(logger, CometLogger):
            logger.experiment.log_table(f"{name}.csv", rows, headers=headers)
        elif is_either(logger, MLFlowLogger):
            client, run_id, file = logger.experiment, logger.run_id, f"{name}.json"
            if any(known.path == file for known in client.list_artifacts(run_id, _FOLDER)):
                # `log_table` would append, to rows of the part before this training was resumed.
                client.log_dict(run_id, {"columns": headers, "data": rows}, file)
            else:
                columns = map(list, zip(*rows, strict=True))
                client.log_table(run_id, dict(zip(headers, columns, strict=True)), file)


def _upload_pictures(logger: Logger, read: Callable[[], Run]) -> None:
    # Not at the top: matplotlib takes a second, and need not be installed.
    from lightning_linf.figures.save import save_figures

    with TemporaryDirectory() as folder:
        for path in save_figures([read()], {"png": Path(folder)}):
            if is_either(logger, WandbLogger):
                logger.log_image(PREFIX + path.stem, [str(path)])
            elif is_either(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, str(path), _FOLDER)
            elif is_either(logger, CometLogger):
                logger.experiment.log_image(str(path), name=PREFIX + path.stem, overwrite=True)


def _tables(run: Run) -> _Tables:
    """Put the tables of all steps below each other, by tag."""
    result: _Tables = {}
    for tag, table in run.tables.items():
        rows = [
            [step, *row]
            for step, array in zip(table.steps, table.values, strict=True)
            for row in _rows(table.metadata, array)
        ]
        result[tag] = ["step", "parameter", *_headers(table.metadata)], rows
    return result


def _headers(metadata: Metadata) -> Iterator[str]:
    for column in metadata.columns:
        if column.width == 1:
            yield column.name
        else:
            levels = column.levels or range(column.width)
            yield from (f"{column.name} {level:g}" for level in levels)


def _rows(metadata: Metadata, array: Any) -> Iterator[list[Any]]:
    names = [*metadata.tensors, *(["all parameters"] if metadata.whole else [])]
    for name, numbers in zip(names, array.tolist(), strict=True):
        # None, for none of the services has NaN or inf in tables.
        yield [name, *(value if math.isfinite(value) else None for value in numbers)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(each, _PLAIN) for each in value)
    return isinstance(value, _PLAIN)
