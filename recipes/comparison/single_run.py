"""One run of a comparison, and how it ended."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule

from comparison.clipping import ClippedSteps
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
        is_shaken: Whether every initial weight is moved to the next number that its type has: as
            much as rounding does, by which one sees what rounding does.
    """

    config: TrainingConfig
    partitions: tuple[str, ...] = ()
    rotations: tuple[tuple[str, float], ...] = ()
    num_points: int = 0
    is_shaken: bool = False

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
        text = " ".join(word for word in words if word) + f", lr {config.lr:g}, seed {config.seed}"
        return text + (", shaken" if self.is_shaken else "")


@dataclass(frozen=True)
class Outcome:
    """How a run ended; its losses are None if it diverged."""

    lr: float
    train_loss: float | None
    val_loss: float | None
    seconds_per_step: float
    seed: int = 0
    geometry: tuple[dict[str, Any], ...] = ()  # one entry a measurement, the last at the end
    clipped_share: float = 0.0  # of the steps, those whose gradient was scaled down
    core_seconds: float = 0.0  # of the processor, for all of the run, with its measurements


def train(run: Run, prepare: Prepare) -> Outcome:
    """Make a run and measure it."""
    started = time.process_time()
    config = run.config
    recorder = LossRecorder()
    own = OwnGeometry(
        run.num_points, run.partitions, run.rotations, config.probe_batches, config.num_probes
    )
    clipping = ClippedSteps(config.gradient_clip_val)
    callbacks: list[Callback] = [recorder, clipping, *([own] if run.num_points else [])]
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)  # otherwise Lightning lists the devices at every run
    try:
        trainer, module, data = prepare(
            config, callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        if run.is_shaken:
            _shake(module)
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
        clipped_share=clipping.share,
        core_seconds=time.process_time() - started,
    )


@torch.no_grad()
def _shake(module: LightningModule) -> None:
    for parameter in module.parameters():
        parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, math.inf)))


def loss_text(loss: float | None) -> str:
    """Write a loss with three digits, or that it diverged."""
    return "diverged" if loss is None else f"{loss:.3f}"
