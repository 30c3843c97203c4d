"""A module whose gradients and Hessian are known, and a short training of it."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IGNORED_WARNINGS = (
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*Checkpoint directory .* exists:UserWarning",
)


class Quadratic(lightning.LightningModule):
    """The loss sum(scale * theta^2) / 2 + 3 sum(phi): gradients and Hessian known."""

    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 2.0, 0.0, -2.0]))
        self.phi = nn.Parameter(torch.zeros(2))
        self.register_buffer("scale", torch.tensor([1.0, 1.0, 1.0, 10.0]))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        loss = (self.scale * self.theta.square()).sum() / 2 + 3 * self.phi.sum()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def loader(length=64):
    return DataLoader(TensorDataset(torch.zeros(length, 1)), batch_size=1)


def fit(module, callbacks, tmp_path, **options):
    defaults = {
        "max_steps": 1,
        "logger": False,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    trainer = lightning.Trainer(callbacks=callbacks, **{**defaults, **options})
    trainer.fit(module, loader())
    return trainer


class TwoOptimizers(Quadratic):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([self.theta], 0.01), torch.optim.SGD([self.phi], 0.01)]
