"""What pages call the reader's own: a small module, its data and so on."""

import lightning
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset


class YourModule(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        loss = mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class YourData(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(*samples()), batch_size=16)


def small_net():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def samples():
    x = torch.randn(64, 8)
    return x, x.sum(dim=1, keepdim=True)


def loss_of(module, batch):
    return mse_loss(module(batch[0]), batch[1])


def readers_names(folder):
    """Make them anew, with a logger that writes below ``folder``."""
    model = small_net()
    return {
        "__name__": "page",
        "Trainer": Trainer,
        "YourData": YourData,
        "YourModule": YourModule,
        "batches": [*zip(*(part.split(16) for part in samples()), strict=True)],
        "data": YourData(),
        "lightning": lightning,
        "logger": CSVLogger(folder),
        "loss": loss_of,
        "model": model,
        "module": YourModule(),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "torch": torch,
    }
