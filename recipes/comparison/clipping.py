"""How often a training's gradient is clipped."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from typing_extensions import override


class ClippedSteps(Callback):
    """Count the steps whose gradient has a norm above the one that it is clipped to.

    Reads gradients before they are clipped. Cost: one norm a step, and no synchronization.

    Args:
        max_norm: The norm; with 0 nothing is clipped.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm
        self._num_steps = 0
        self._num_clipped: Tensor | int = 0

    @property
    def share(self) -> float:
        """The clipped steps over all."""
        return int(self._num_clipped) / max(1, self._num_steps)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._num_steps += 1
        if not self.max_norm:
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._num_clipped = self._num_clipped + torch.gt(norm, self.max_norm)
