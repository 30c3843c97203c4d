"""A training in whose probes things go wrong."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Regression(lightning.LightningModule):
    """A small net; ``fault(module, probe, batch)`` is called in each evaluation of a probe."""

    def __init__(self, fault=None):
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
        self.fault = fault

    def loss(self, batch):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def probe_loss(self, batch):
        loss = self.loss(batch)
        return loss if self.fault is None else self.fault(self, loss, batch)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(80, 4, generator=generator)
        x = x.roll(-8 * self.global_step, 0)  # a resumed run goes on where it was
        data = TensorDataset(x, x.sum(1, keepdim=True).sin())
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(data, world_size, rank, shuffle=False)
        return DataLoader(data, batch_size=8 // world_size, sampler=sampler)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def fit(module, callbacks, tmp_path, *, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        callbacks=callbacks,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{
            "accelerator": "cpu",
            "max_steps": 8,
            "logger": False,
            "enable_checkpointing": False,
            **options,
        },
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def at_probes(numbers, replace):
    """A fault in the probes with these numbers, from 0: ``replace(loss, batch)``."""
    seen = []

    def fault(module, loss, batch):
        step = module.trainer.global_step
        if step not in seen:
            seen.append(step)
        return replace(loss, batch) if len(seen) - 1 in numbers else loss

    return fault
