"""Read a checkpoint before a strategy restores optimizers from it that have yet to be swapped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

Reader = Callable[[Mapping[str, Any]], None]
_METADATA = "meta.pt"  # in a checkpoint that is a folder: all but weights and optimizers


def before_restoring(trainer: Trainer, reader: Reader) -> None:
    """Call a function with the checkpoint of this fit, if any, before optimizers are restored.

    To be called in ``on_fit_start``, under ModelParallelStrategy. That loads weights and optimizers
    in one call right after this hook, so optimizers must be swapped in between, as the checkpoint
    tells. Its ``load_checkpoint`` is replaced by one that first calls the functions.

    Args:
        trainer: A trainer whose strategy has ``restore_checkpoint_after_setup``.
        reader: Is called with the checkpoint, which may lack weights and optimizers.
    """
    strategy = trainer.strategy
    pending = vars(strategy).get("load_checkpoint")
    if not isinstance(pending, _Restoring):
        pending = _Restoring(trainer)
        strategy.load_checkpoint = pending  # type: ignore[method-assign]  # until it is called
    pending.readers.append(reader)


def end_restoring(trainer: Trainer) -> None:
    """Put the strategy's own ``load_checkpoint`` back, as when a fit had no checkpoint to load."""
    if isinstance(vars(trainer.strategy).get("load_checkpoint"), _Restoring):
        del trainer.strategy.load_checkpoint


class _Restoring:
    """A ``load_checkpoint`` that calls the readers, then the strategy's own."""

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
                weights_only=options.get("weights_only"),  # as the strategy does
            )
            for reader in self.readers:
                reader(checkpoint)
        return strategy.load_checkpoint(checkpoint_path, *args, **options)
