"""Callbacks that keep the losses of a run."""

import math
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

_NUM_LAST = 20  # steps whose mean is the training loss of a run
_CHECK_EVERY = 10  # steps between looks whether the loss is still finite


class LossHistory(Callback):
    """Keep what the module logs as ``train_loss`` and ``val_loss``, by 0-based optimizer step.

    Under accumulation the training loss is that of the micro-batch that completed the step.

    Args:
        every_n_steps: Keep the training loss of every n-th step, those that a monitor measures.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.train: dict[int, float] = {}
        self.validation: dict[int, float] = {}
        self._num_steps = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_steps = trainer.global_step  # more than 0 when resumed

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._num_steps:
            return  # accumulating
        self._num_steps = trainer.global_step
        if self._num_steps % self.every_n_steps == 0:  # elsewhere the device need not wait for it
            self.train[self._num_steps - 1] = float(trainer.callback_metrics["train_loss"])

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation[trainer.global_step - 1] = float(trainer.callback_metrics["val_loss"])

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"train": dict(self.train), "validation": dict(self.validation)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train = dict(state_dict["train"])
        self.validation = dict(state_dict["validation"])


class LossRecorder(Callback):
    """Keep the mean training loss of the last 20 steps and the median time of a step.

    It stops a run whose loss is no longer finite.
    """

    def __init__(self) -> None:
        self.train_loss = math.nan
        self.losses: list[Tensor] = []  # by step, of this rank
        self.times: list[float] = []
        self._sum: Tensor | float = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum = self._sum + outputs["loss"].detach()  # already divided by their number
        if trainer.global_step == len(self.losses):
            return  # accumulating
        self.losses.append(torch.as_tensor(self._sum))
        self.times.append(time.perf_counter())
        self._sum = 0.0
        if len(self.losses) % _CHECK_EVERY == 0:  # elsewhere the device need not wait for it
            is_lost = not bool(self.losses[-1].isfinite())
            if trainer.strategy.reduce_boolean_decision(is_lost, all=False):
                trainer.should_stop = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean = torch.stack(self.losses[-_NUM_LAST:]).mean()
        self.train_loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))

    @property
    def seconds_per_step(self) -> float:
        """The median, which the first steps and other programs hardly change."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return statistics.median(end - start for start, end in pairs)
