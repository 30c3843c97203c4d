"""Train small networks on Python's own sources, for pictures of the panels.

    python docs/scripts/demo_runs.py runs/demo

A few minutes on two CPU cores: a network of 16k parameters predicts the next character, with
Adam, with Adam in rotated coordinates and with SGD.
"""

import sys
import sysconfig
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import Geometry, GeometryMixin
from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)

CONTEXT = 12  # characters that the network sees
BATCH, ACCUMULATE = 64, 4
OPTIMIZERS = {
    "adam": (Geometry("adamw"), 3e-3),
    "adam-rotated": (Geometry("adamw", rotation="global"), 3e-3),
    "sgd": (Geometry("sgd"), 0.3),
}


class Block(nn.Module):
    """A residual step of one hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (batch, width) in and out."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class NextCharacter(lightning.LightningModule):
    """Embed characters, mix them, predict the next."""

    def __init__(self, lr: float, optimizer: str, width: int = 24, depth: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.embed = nn.Embedding(128, 8)
        self.mix = nn.Linear(8 * CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 128)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Log and return the cross-entropy."""
        (text,) = batch
        hidden = self.blocks(self.mix(self.embed(text[:, :-1]).flatten(1)))
        loss = nn.functional.cross_entropy(self.head(self.norm(hidden)), text[:, -1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain AdamW, which GeometryMixin exchanges."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def characters() -> TensorDataset:
    """Cut the standard library's modules into windows of ASCII characters."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    text = torch.tensor([code for file in files for code in file.read_bytes() if code < 128])
    return TensorDataset(text.unfold(0, CONTEXT + 1, 3))


def train(name: str, folder: Path, max_steps: int, every: int) -> None:
    """Train one of ``OPTIMIZERS`` with all monitors, in the coordinates in which it steps."""
    geometry, lr = OPTIMIZERS[name]
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accumulate_grad_batches=ACCUMULATE,
        logger=TensorBoardLogger(folder, name="", version=name, default_hp_metric=False),
        callbacks=[
            GradientHeterogeneityMonitor(every_n_steps=max(1, every // 8)),
            GradientNoiseMonitor(every_n_steps=every),
            # Without a limit, under which the clock would choose the steps.
            LinfSmoothnessMonitor(
                every,
                partitions=["row", "tensor"],
                num_batches=4,
                max_overhead=None,
                coordinates="optimizer",
            ),
            EdgeMonitor(every, num_batches=4, max_overhead=None),
            LearningRateMonitor(),
        ],
        accelerator="cpu",
        log_every_n_steps=every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = GeometryMixin.wrap(NextCharacter(lr, name), geometry)
    trainer.fit(module, DataLoader(characters(), BATCH, shuffle=True))


def main(folder: str = "runs/demo", max_steps: int = 480, every: int = 24) -> None:
    """Train all of them into ``folder``."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # inside Lightning
    for name in OPTIMIZERS:
        train(name, Path(folder), max_steps, every)


if __name__ == "__main__":
    main(*sys.argv[1:2])
