"""Real trainings with all that a researcher looks at beside the geometry, for the panels."""

import shutil

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from support.short_run import Net, data

from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.optim import Reparameterized
from lightning_linf.reparam import Rotation


class Watched(Net):
    """Logs both losses; may rotate its optimizer, and lose its loss to NaN."""

    def __init__(self, rotation=None, nan_from=None, **options):
        super().__init__(**options)
        self.rotation, self.nan_from = rotation, nan_from

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.nan_from is not None and self.global_step >= self.nan_from:
            loss = loss * torch.nan
            self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", (self.head(self.body(x)) - y).square().mean())

    def configure_optimizers(self):
        def make(params):
            return torch.optim.AdamW(params, lr=0.05)

        if self.rotation is None:
            return make(self.parameters())
        return Reparameterized(self.parameters(), make, self.rotation)


def watch(folder, name, *, max_steps=12, seed=0, coordinates="parameters", callbacks=(), **options):
    """Train with all monitors, measuring every fourth step, into ``folder / name``."""
    lightning.seed_everything(seed, verbose=False)
    monitors = [
        GradientHeterogeneityMonitor(2),
        LinfSmoothnessMonitor(
            4,
            partitions=["row", "tensor"],
            num_probes=4,
            num_batches=2,
            max_overhead=None,
            coordinates=coordinates,
        ),
        EdgeMonitor(4, num_batches=2, max_overhead=None),
    ]
    trainer = lightning.Trainer(
        max_steps=max_steps,
        logger=TensorBoardLogger(folder, name="", version=name, default_hp_metric=False),
        callbacks=[*monitors, LearningRateMonitor(), *callbacks],
        accelerator="cpu",
        log_every_n_steps=1,
        val_check_interval=4,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Watched(**options), data(), data(4))
    return monitors


LONG = "sweep-2026-11-30/a-name-that-tells-everything-about-its-settings/learning_rate=0.0030-seed="


def watch_all(folder):
    """Train four runs, of which one ends early, one fails and one is rotated, and copy others.

    Returns:
        By run, its monitors.
    """
    monitors = {
        "short": watch(folder, "short", max_steps=4),
        "long": watch(folder, "long", max_steps=16, seed=1),
        "failed": watch(folder, "failed", max_steps=12, seed=2, nan_from=9),
        "rotated": watch(folder, "rotated", rotation=Rotation(seed=0), coordinates="optimizer"),
    }
    for number in range(5):
        shutil.copytree(folder / "short", folder / f"{LONG}{number}")
    return monitors
