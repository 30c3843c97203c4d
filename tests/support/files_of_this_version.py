"""Write what this version writes into tests/record/written/VERSION, for later versions to read.

python tests/support/files_of_this_version.py
"""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import measure_geometry, record
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)

WRITTEN = Path(__file__).parents[1] / "record" / "written"


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def loss(self, batch):
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def main(folder):
    folder.mkdir()
    torch.manual_seed(0)
    module, inputs = Net(), torch.randn(32, 4)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    batches = DataLoader(data, batch_size=8)
    with tempfile.TemporaryDirectory() as runs:
        trainer = Trainer(
            max_steps=4,
            accelerator="cpu",
            accumulate_grad_batches=2,
            logger=CSVLogger(runs),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[
                GradientHeterogeneityMonitor(2),
                GradientNoiseMonitor(2),
                LinfSmoothnessMonitor(2, num_batches=2, num_probes=4, max_overhead=None),
            ],
        )
        trainer.fit(module, batches)
        (path,) = Path(runs).rglob(record.FILE_NAME)
        shutil.copy(path, folder)
    report = measure_geometry(module, list(batches), loss=Net.loss, num_probes=4)
    report.save(folder / "report.json")


if __name__ == "__main__":
    main(WRITTEN / version("lightning-linf"))
