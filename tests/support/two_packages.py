"""Modules and data for both packages of Lightning."""

import lightning
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = {"lightning": lightning, "pytorch_lightning": pytorch_lightning}


def net_of(package, mixin=()):
    """A module of one package, the same but for that."""

    class Net(*mixin, PACKAGES[package].LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.net = nn.Sequential(
                nn.Linear(4, 6), nn.LayerNorm(6), nn.Dropout(0.2), nn.Linear(6, 1)
            )

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = (self.net(x) - y).square().mean()
            self.log("loss", loss, on_step=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return Net


def data():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=8)
