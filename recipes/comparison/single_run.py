"""One run of a comparison, and how it ended."""

import logging
import math
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback

from comparison.own_geometry import OwnGeometry
from training.config import Prepare, TrainingConfig
from training.losses import LossRecorder


@dataclass(frozen=True)
class Run:
    """A run, and the geometry that is measured on it.

    Args:
        config: Its settings.
        partitions: Partitions whose smoothness is measured, in the optimizer's own coordinates.
        rotations: Scope and strength of rotations; the (1,1)-norm is also measured in their
            coordinates.
        num_points: Number of measurements, the last at the end of the run; 0 measures nothing.
    """

    config: TrainingConfig
    partitions: tuple[str, ...] = ()
    rotations: tuple[tuple[str, float], ...] = ()
    num_points: int = 0

    @property
    def label(self) -> str:
        """Name the run by what differs between runs, as in `sgd rotated global, lr 1, seed 0`."""
        config = self.config
        words = [
            config.optimizer,
            config.partition,
            config.rotation and f"rotated {config.rotation}",
        ]
        if config.rotation_strength != 1:
            words.append(f"{config.rotation_strength:g}")
        return " ".join(word for word in words if word) + f", lr {config.lr:g}, seed {config.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended; its losses are None if it diverged."""

    lr: float
    train_loss: float | None
    val_loss: float | None
    seconds_per_step: float
    seed: int = 0
    geometry: tuple[dict[str, Any], ...] = ()  # one entry a measurement, the last at the end


def train(run: Run, prepare: Prepare) -> Outcome:
    """Make a run and measure it."""
    config = run.config
    recorder = LossRecorder()
    own = OwnGeometry(
        run.num_points, run.partitions, run.rotations, config.probe_batches, config.num_probes
    )
    callbacks: list[Callback] = [recorder, own] if run.num_points else [recorder]
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)  # otherwise Lightning lists the devices at every run
    try:
        trainer, module, data = prepare(
            config, callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data)
    finally:
        log.setLevel(level)
    val_loss = float(trainer.callback_metrics.get("val_loss", math.nan))
    is_finite = math.isfinite(recorder.train_loss) and math.isfinite(val_loss)
    assert trainer.global_step == config.max_steps or not is_finite
    return Outcome(
        lr=config.lr,
        train_loss=recorder.train_loss if is_finite else None,
        val_loss=val_loss if is_finite else None,
        seconds_per_step=recorder.seconds_per_step,
        seed=config.seed,
        geometry=tuple(own.rows),
    )


def loss_text(loss: float | None) -> str:
    """Write a loss with three digits, or that it diverged."""
    return "diverged" if loss is None else f"{loss:.3f}"
