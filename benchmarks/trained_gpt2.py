"""The GPT-2 of `recipes/gpt2.py` (preset tiny) at several steps of its training, on one batch."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from data.token_data import TokenData
from gpt2 import GPT2, Config


class _KeepWeights(Callback):
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps
        self.kept: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep them if this is one of the steps."""
        if trainer.global_step in self.steps:
            state = {name: value.clone() for name, value in pl_module.state_dict().items()}
            self.kept[trainer.global_step] = state

    on_train_batch_end = on_train_start


def trained_gpt2(steps: list[int]) -> tuple[GPT2, Tensor, dict[int, dict[str, Tensor]]]:
    """Train with Adam as the recipe does, and keep the weights after each of ``steps``.

    Returns:
        The module, a batch of 16 training sequences it has not seen by then, and the weights.
    """
    config = Config()
    seed_everything(config.seed, verbose=False)
    module, keep = GPT2(config), _KeepWeights(steps)
    data = TokenData.of(config)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=max(*steps, 1), max_epochs=1, logger=False,
        callbacks=[keep], gradient_clip_val=config.gradient_clip_val, limit_val_batches=0,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, data)
    batch = next(iter(data.train_dataloader()))  # where the training would go on
    return module, batch, keep.kept


def token_loss(module: nn.Module, batch: Tensor) -> Tensor:
    """Cross-entropy a token, in nats."""
    assert isinstance(module, GPT2)
    return module.loss(batch)
