"""The dtype of the tensors that a module makes while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_linf.lightning_packages import is_either

_TRUE = ("64-true", "bf16-true", "16-true")  # with these a Trainer sets torch's default dtype


@contextmanager
def training_dtype(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Give new tensors ``dtype`` where the module's trainer gives them that of its parameters.

    Lightning does so around ``training_step`` alone, and so does whoever calls this.

    Args:
        module: A LightningModule may be attached to a trainer.
        dtype: The one in which the parameters are probed.
    """
    trainer = module._trainer if is_either(module, LightningModule) else None
    plugin = getattr(trainer, "precision_plugin", None)
    if getattr(plugin, "precision", None) not in _TRUE:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
