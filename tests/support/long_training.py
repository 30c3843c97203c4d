"""What a long training with two monitors keeps: `python long_training.py NUM_PARAMS NUM_STEPS`."""

import ctypes
import gc
import json
import os
import sys
import tempfile
import warnings

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor

MIB = 2**20
TENSORS = (torch.Tensor, nn.Parameter)


class Quadratic(lightning.LightningModule):
    def __init__(self, num_params):
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(1.0, 2.0, num_params))

    def training_step(self, batch, batch_idx):
        loss = (self.theta * batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


class Heterogeneity(GradientHeterogeneityMonitor):
    max_history = 10


class Smoothness(LinfSmoothnessMonitor):
    max_history = 10


class Resident(lightning.Callback):
    """Resident memory and live tensors at some steps."""

    def __init__(self, steps):
        self.steps, self.mib, self.tensors = steps, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step in self.steps:
            gc.collect()
            # What is freed between pieces in use glibc keeps: at chance, up to several MiB.
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/statm") as file:
                self.mib.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB)
            self.tensors.append(sum(type(o) in TENSORS for o in gc.get_objects()))


def main(num_params, num_steps):
    """Print what was resident at a quarter of the steps and at the end, and the steps kept."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    monitors = [
        Heterogeneity(1, on_error="raise"),
        Smoothness(1, num_probes=4, num_batches=2, on_error="raise", max_overhead=None),
    ]
    resident = Resident([num_steps // 4, num_steps])
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=num_steps,
            callbacks=[*monitors, resident],
            logger=CSVLogger(folder),
            log_every_n_steps=20,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        loader = DataLoader(torch.randn(40, num_params), batch_size=2)
        trainer.fit(Quadratic(num_params), loader)
    steps = [[entry["step"] for entry in monitor.history] for monitor in monitors]
    print(json.dumps({"mib": resident.mib, "tensors": resident.tensors, "steps": steps}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
