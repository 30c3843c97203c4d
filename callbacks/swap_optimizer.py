"""Change the optimizer, its blocks or its coordinates at a step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.nn.parameter import UninitializedParameter
from typing_extensions import override

from lightning_linf.argument_checks import check_whole
from lightning_linf.callbacks._trainer import is_dev_run
from lightning_linf.swap.geometry import Geometry, check_geometry
from lightning_linf.swap.groups import holds_mapped_state
from lightning_linf.swap.mixin import GeometryMixin
from lightning_linf.swap.restoring import before_restoring, end_restoring
from lightning_linf.swap.trainer import check_strategy, chosen_optimizers, swap_optimizers


class SwapOptimizer(Callback):
    """Replace the optimizers of any module once, at a given step.

    The swap is made in ``on_train_batch_start``, before the first batch of that step; under
    ``fast_dev_run``, before the first batch of all. Parameter groups, learning rates and schedules
    are kept, momentum and second moments are carried over. A run that is resumed after the swap
    goes on with the new optimizer. Several of these callbacks may swap at several steps.

    Args:
        at_step: Number of optimizer steps (``trainer.global_step``) before the swap.
        geometry: The choice of the new optimizers.
        carry: Carry momentum and second moments over; else they start anew.
        index: Number of the optimizer to replace, if the module has several. Default: all of them.

    Raises:
        ValueError: At once: if ``at_step`` or ``index`` is negative, or ``geometry`` is not a
            Geometry. When fitting starts: if no optimizer has the number ``index``, or if a
            geometry does not fit the parameters and names its optimizer by name or class. At the
            swap: if a geometry that could not be checked before does not fit.
        MisconfigurationException: In ``setup``: under FSDPStrategy and DeepSpeed. While fitting:
            for a checkpoint that was saved after a swap to another geometry.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_linf import Geometry
        >>> swap = SwapOptimizer(1000, Geometry("sgd", lr=0.1))
        >>> trainer = Trainer(callbacks=[swap], logger=False)
    """

    def __init__(
        self, at_step: int, geometry: Geometry, carry: bool = True, index: int | None = None
    ) -> None:
        check_whole("SwapOptimizer", "at_step", at_step, 0, "0 swaps at once.")
        check_geometry("SwapOptimizer", geometry)
        if not isinstance(carry, bool):
            raise ValueError(f"SwapOptimizer: expected `carry` True or False, got {carry!r}.")
        remedy = "Count from 0, in the order of configure_optimizers."
        check_whole("SwapOptimizer", "index", index, 0, remedy, or_none=True)
        self.at_step = at_step
        self.geometry = geometry
        self.carry = carry
        self.index = index
        self.is_done = False
        self._saved_geometry = geometry.describe()  # replaced by that of a loaded checkpoint

    @property
    @override
    def state_key(self) -> str:
        index = {} if self.index is None else {"index": self.index}
        return self._generate_state_key(at_step=self.at_step, **index)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy("SwapOptimizer", trainer)
            self.is_done = False  # a checkpoint is loaded after this hook
            end_restoring(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)
        if _in_order(trainer)[0] is not self:
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            before_restoring(trainer, lambda saved: _resume(trainer, pl_module, saved))
        else:
            _swap_again(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(map(holds_mapped_state, trainer.optimizers)):
            raise MisconfigurationException(
                "SwapOptimizer: expected a checkpoint of a run with swaps at the same steps, got "
                "one in other coordinates than the optimizer's. Resume with the callbacks of that "
                "run, and change the geometry by further ones."
            )
        is_automatic = pl_module.automatic_optimization
        num_steps = trainer.estimated_stepping_batches if is_automatic else trainer.max_steps
        if not (self.is_done or is_dev_run(trainer)) and 0 <= num_steps <= self.at_step:
            rank_zero_warn(
                f"SwapOptimizer: `at_step`={self.at_step} is not before the last of {num_steps} "
                "steps, so nothing will be swapped. Lower it."
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_done:
            for swap in _in_order(trainer):  # several may be due, if a run without is resumed
                if not swap.is_done and swap._is_due(trainer):
                    swap._swap(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise now the ValueError that the swap would raise in the middle of the training."""
        optimizers = chosen_optimizers("SwapOptimizer", trainer, self.index)
        parameters = list(pl_module.parameters())
        is_lazy = any(isinstance(p, UninitializedParameter) for p in parameters)
        if self.geometry.kind() is None or is_lazy:  # known at the step of the swap only
            return
        geometry = replace(self.geometry, lr=None)  # which needs rates above 0: they may be 0 yet
        try:
            for optimizer in optimizers:
                geometry.make(optimizer, pl_module)
        except ValueError as error:
            if all(p.requires_grad for p in parameters):
                raise
            rank_zero_warn(
                f"SwapOptimizer: the swap at step {self.at_step} will fail, unless other "
                f"parameters are trained by then. {error}"
            )

    def _is_due(self, trainer: Trainer) -> bool:
        return is_dev_run(trainer) or trainer.global_step >= self.at_step

    def _swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, GeometryMixin):
            pl_module.swap_optimizer(self.geometry, carry=self.carry, index=self.index)
        else:
            swap_optimizers(trainer, pl_module, self.geometry, carry=self.carry, index=self.index)
        self.is_done = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done, "geometry": self.geometry.describe()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.is_done = state_dict["is_done"]
        self._saved_geometry = state_dict["geometry"]


def _in_order(trainer: Trainer) -> list[SwapOptimizer]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return sorted(
        (callback for callback in callbacks if isinstance(callback, SwapOptimizer)),
        key=lambda callback: callback.at_step,
    )


def _resume(trainer: Trainer, module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Load the states of these callbacks earlier than the trainer does, and swap."""
    states = checkpoint.get("callbacks", {})
    for swap in _in_order(trainer):
        if swap.state_key in states:
            swap.load_state_dict(states[swap.state_key])
    _swap_again(trainer, module)


def _swap_again(trainer: Trainer, module: LightningModule) -> None:
    """Make the swaps of a resumed run again, in their order, before the state is restored.

    A GeometryMixin does so by itself: its checkpoints have a list of the swaps.
    """
    done = [swap for swap in _in_order(trainer) if swap.is_done]
    for swap in done:
        if swap._saved_geometry != swap.geometry.describe():
            raise MisconfigurationException(
                f"SwapOptimizer: expected a checkpoint after a swap to {swap.geometry.describe()}, "
                f"got one after a swap to {swap._saved_geometry}. Resume with that geometry, and "
                "change it by another SwapOptimizer."
            )
    for swap in done if not isinstance(module, GeometryMixin) else []:
        swap._swap(trainer, module)
