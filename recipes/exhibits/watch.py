"""Train a run of the gallery with every monitor, and keep what a page shows of it."""

import csv
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from exhibits.entries import Training
from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
    StepMonitor,
)
from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.quantities import PREFIX
from lightning_linf.record import FILE_NAME, Reader, append
from lightning_linf.runs.own import CSV_NAME
from training.config import TrainingConfig

SETTINGS = "config.json"  # beside the records of a finished run


def is_kept(training: Training, folder: Path) -> bool:
    """Tell whether the records of these settings are there, and whole."""
    file = folder / SETTINGS
    return file.is_file() and json.loads(file.read_text("utf-8")) == _settings(training.config)


def watch(training: Training, folder: Path) -> None:
    """Train, and replace the records in ``folder`` once the run is finished."""
    config = training.config
    # Sums of several threads would depend on their number.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        trainer, module, data = training.prepare(
            config,
            monitors(config),
            logger=CSVLogger(runs, name="", version="run"),
            log_every_n_steps=config.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, data)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _keep_records(Path(runs, "run", FILE_NAME), folder / FILE_NAME)
        _keep_own(Path(runs, "run", CSV_NAME), folder / CSV_NAME)
    # Last: it says that the rest is there.
    text = json.dumps(_settings(config), indent=1)
    (folder / SETTINGS).write_text(f"{text}\n", encoding="utf-8")


def monitors(config: TrainingConfig) -> list[Callback]:
    """Make all of them, on the whole batch of each measured step, in the optimizer's coordinates.

    None has a limit of its time, under which the clock would choose the steps.
    """
    every, num_batches = config.smoothness_every, config.accumulate
    return [
        GradientHeterogeneityMonitor(config.heterogeneity_every),
        GradientNoiseMonitor(every),
        LinfSmoothnessMonitor(
            every,
            num_probes=config.num_probes,
            num_batches=num_batches,
            max_overhead=None,
            coordinates="optimizer",
        ),
        EdgeMonitor(every, num_batches=num_batches, max_overhead=None),
        StepMonitor(every, num_batches=num_batches, max_overhead=None),
        LearningRateMonitor(),
    ]


def _settings(config: TrainingConfig) -> object:
    return json.loads(json.dumps(asdict(config)))  # tuples become lists, as in the file


def _keep_records(source: Path, target: Path) -> None:
    """Keep all but the histograms, which event files need and pages do not."""
    with source.open("rb") as file:
        for _, record in Reader(file):
            append(target, replace(record, histogram=None))


def _keep_own(source: Path, target: Path) -> None:
    """Keep losses and learning rates; the geometry is in the records."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tags = own_scalars(tag for tag in rows[0] if not tag.startswith(PREFIX))
    _write(target, ["step", *(tag for kind in tags.values() for tag in kind)], rows)


def _write(target: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if any(row[name] for name in columns[1:]))
