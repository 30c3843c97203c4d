"""Where the record of a measurement goes: event files, and `geometry.jsonl` beside any logger."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_linf import record
from lightning_linf.callbacks._services import is_service, settings_of, show_record, uploads
from lightning_linf.callbacks._trainer import shown_hyperparameters
from lightning_linf.lightning_packages import is_either
from lightning_linf.record import Record
from lightning_linf.recorder.entry import num_restarts
from lightning_linf.tensorboard import layout
from lightning_linf.tensorboard.writer import write_record

Tasks = Iterator[tuple[str, Callable[[], None]]]  # what is done, in words and as a function


def opening(trainer: Trainer, monitors: Iterable[Callback]) -> Tasks:
    """List what the loggers get of the monitors before a training; on rank zero only."""
    if not trainer.is_global_zero:
        return
    yield "lay out TensorBoard's custom scalars", partial(write_layout, trainer, monitors)
    for logger in trainer.loggers:
        if is_service(logger):
            settings = settings_of(monitors)
            yield "log the settings of the monitors", partial(logger.log_hyperparams, settings)


def closing(trainer: Trainer) -> Tasks:
    """List what the loggers get of a training that was measured and has ended."""
    if not trainer.is_global_zero:
        return
    yield "show the run among TensorBoard's HPARAMS", partial(write_session, trainer)
    path = jsonl_path(trainer)
    if path is not None:
        yield from uploads(trainer.loggers, path)


def writers(trainer: Trainer, entry: Record) -> Tasks:
    """List what is to be done with a record; on rank zero only."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if is_either(logger, TensorBoardLogger):
            yield "write to its event file", partial(write_record, logger.experiment, entry)
        elif is_service(logger):
            yield f"show tables in {type(logger).__name__}", partial(show_record, logger, entry)
    path = jsonl_path(trainer)
    if path is not None:
        yield f"write to {path}", partial(record.append, path, entry)


def jsonl_path(trainer: Trainer) -> Path | None:
    """Give the place of `geometry.jsonl`: in the first logger's folder of the run.

    Below the trainer's ``default_root_dir`` where that folder is remote. Without a logger (and in
    trial runs, whose loggers Lightning replaces) nothing is written.
    """
    if not trainer.loggers or is_either(trainer.logger, DummyLogger):
        return None
    logger, root = trainer.loggers[0], trainer.default_root_dir
    folders = (_run_folder(logger, trainer), _named_folder(logger, root))
    local = (folder for folder in folders if "://" not in folder)  # only these can be added to
    folder = next(local, None)
    return None if folder is None else Path(os.path.expanduser(folder), record.FILE_NAME)


def _run_folder(logger: Logger, trainer: Trainer) -> str:
    if is_either(logger, TensorBoardLogger) or is_either(logger, CSVLogger):
        return logger.log_dir
    return _named_folder(logger, logger.save_dir or trainer.default_root_dir)


def _named_folder(logger: Logger, folder: str) -> str:
    """Go down as checkpoints do: several runs may share a logger's folder."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(folder, str(logger.name), version)


def start_jsonl(trainer: Trainer, step: int) -> None:
    """Make `geometry.jsonl` ready for the records from ``step`` on."""
    path = jsonl_path(trainer) if trainer.is_global_zero else None
    kept = record.cut(path, step) if path is not None else None
    if kept is not None:
        rank_zero_info(
            f"{record.FILE_NAME}: the records from step {step} on of an earlier training are now "
            f"in {kept}."
        )
    if path is not None and num_restarts():
        rank_zero_info(f"{record.FILE_NAME}: restart {num_restarts()} goes on at step {step}.")


def write_layout(trainer: Trainer, monitors: Iterable[Callback]) -> None:
    """Give TensorBoard's custom scalars a layout; a later one of the user's replaces it."""
    classes = [base.__name__ for monitor in monitors for base in type(monitor).__mro__]
    for logger in trainer.loggers:
        if is_either(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(layout.custom_scalars(classes))


def write_session(trainer: Trainer) -> None:
    """Make the run a session of TensorBoard's HPARAMS, which shows each scalar's last value.

    All scalars, that is, unless Lightning has listed ``hp_metric`` as the only one, which
    ``TensorBoardLogger(default_hp_metric=False)`` prevents.
    """
    for logger in trainer.loggers:
        if is_either(logger, TensorBoardLogger) and logger.hparams:
            # Not at the top: it needs tensorboard, without which Lightning uses another writer.
            from torch.utils.tensorboard.summary import hparams

            shown = shown_hyperparameters(logger)
            _, start, end = hparams(shown, {})  # type: ignore[no-untyped-call]
            for summary in (start, end):
                logger.experiment._get_file_writer().add_summary(summary)
