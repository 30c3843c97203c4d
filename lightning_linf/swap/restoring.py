"""What a checkpoint says, before a strategy loads optimizers from it that are yet to be swapped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

Reader = Callable[[Mapping[str, Any]], None]
_METADATA = "meta.pt"  # all but weights and optimizers, in a folder that Lightning saved


def before_restoring(trainer: Trainer, reader: Reader) -> None:
    """Show the checkpoint of this fit, if any, to a function before optimizers are restored.

    To be called in ``on_fit_start``. ModelParallelStrategy loads weights and optimizers in one go,
    after that hook and before any other, so what follows from a checkpoint must be done in between:
    its ``load_checkpoint`` is replaced until it is called.

    Args:
        trainer: Whose strategy restores after ``on_fit_start``, which others do later.
        reader: Gets the checkpoint, which may have neither weights nor optimizers.
    """
    strategy = trainer.strategy
    pending = vars(strategy).get("load_checkpoint")
    if not isinstance(pending, _Restoring):
        pending = _Restoring(trainer)
        strategy.load_checkpoint = pending  # type: ignore[method-assign]  # until it is called
    pending.readers.append(reader)


def end_restoring(trainer: Trainer) -> None:
    """Forget the readers, as of a fit without a checkpoint, when another one begins."""
    if isinstance(vars(trainer.strategy).get("load_checkpoint"), _Restoring):
        del trainer.strategy.load_checkpoint


class _Restoring:
    """A strategy's ``load_checkpoint`` that first lets others read."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.readers: list[Reader] = []

    def __call__(self, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        strategy = self._trainer.strategy
        end_restoring(self._trainer)
        if self._trainer.state.fn == TrainerFn.FITTING:
            path = Path(strategy.broadcast(checkpoint_path))
            checkpoint = torch.load(
                path / _METADATA if path.is_dir() else path,
                map_location="cpu",
                mmap=path.is_file(),
                weights_only=options.get("weights_only"),  # as the strategy will
            )
            for reader in self.readers:
                reader(checkpoint)
        return strategy.load_checkpoint(checkpoint_path, *args, **options)
