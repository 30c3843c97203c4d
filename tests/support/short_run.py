"""A real short training with all monitors, for tests of what is written and shown."""

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)

IGNORED_WARNINGS = (
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*Checkpoint directory .* exists:UserWarning",
    "ignore:.*dataloader is not resumable:UserWarning",
)


class Net(lightning.LightningModule):
    """Two layers and a LayerNorm, on a regression."""

    def __init__(self, width=6, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Tanh())
        self.head = nn.Linear(width, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.head(self.body(x)) - y).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def data(num_batches=400):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4 * num_batches, 4, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :2] * x[:, 2:]), batch_size=4)


def train(loggers, *, max_steps=8, seed=0, ckpt_path=None, module=None, **options):
    """Train, measuring at every second step; give the trainer and its monitors."""
    lightning.seed_everything(seed, verbose=False)
    monitors = [
        GradientHeterogeneityMonitor(2, on_error="raise"),
        GradientNoiseMonitor(4, on_error="raise"),
        LinfSmoothnessMonitor(
            4,
            partitions=["row", "tensor"],
            num_probes=4,
            num_batches=2,
            on_error="raise",
            max_overhead=None,
        ),
    ]
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accumulate_grad_batches=2,
        logger=loggers,
        callbacks=[*monitors, *options.pop("callbacks", [])],
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(module or Net(), data(), ckpt_path=ckpt_path)
    return trainer, monitors


def train_into(folder, name, **options):
    """Train with event files in ``folder / name``."""
    logger = TensorBoardLogger(folder, name="", version=name, default_hp_metric=False)
    return train([logger], **options)
