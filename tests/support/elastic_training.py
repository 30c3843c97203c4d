"""A training that torchrun starts again: `torchrun elastic_training.py FOLDER STEP_OF_DEATH`."""

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from support.faulty_training import Regression, fit, weights

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor


class MortalOnce(Regression):
    """Its rank 1 is killed in the forward pass of one step, the first time."""

    def __init__(self, folder, last_step):
        super().__init__()
        self.died, self.last_step = folder / "died", last_step

    def training_step(self, batch, batch_idx):
        is_last = self.global_step == self.last_step and self.global_rank == 1
        if is_last and not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def main(folder, last_step):
    """Train to step 8, from the last checkpoint if there is one, and keep what came of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module = MortalOnce(folder, last_step)
    monitors = [
        GradientHeterogeneityMonitor(1, on_error="raise"),
        LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None, on_error="raise"),
    ]
    every = ModelCheckpoint(folder, every_n_train_steps=3, save_last=True)
    fit(
        module, [*monitors, every], folder, ckpt_path="last", devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"), enable_checkpointing=True,
        logger=CSVLogger(folder, "", "", flush_logs_every_n_steps=1),
    )  # fmt: skip
    if module.global_rank == 0:
        smoothness = [[e["step"], e["one_one_norm_per_param"]] for e in monitors[1].history]
        torch.save({"weights": weights(module), "smoothness": smoothness}, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    # While Python ends, a thread of gloo may still free tensors: torch then aborts.
    sys.stderr.flush()
    os._exit(0)
