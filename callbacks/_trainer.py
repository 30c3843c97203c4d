"""What right numbers need to know of a trainer; private names of Lightning with their reasons."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_linf.lightning_packages import either, is_either


def logged_step(trainer: Trainer) -> int:
    """Index of the present optimizer step on the x axis of the user's own curves.

    ``self.log`` and ``LearningRateMonitor`` use this counter; ``global_step`` differs from it with
    several optimizers, and within a step.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_dev_run(trainer: Trainer) -> bool:
    """Whether ``fast_dev_run`` was asked for: an attribute that the class does not declare."""
    return bool(getattr(trainer, "fast_dev_run", False))


def loss_scale(trainer: Trainer) -> float | None:
    """Factor on the loss, and so on gradients while microbatches add up; None without a scaler."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if is_either(plugin, MixedPrecision) else None
    return None if scaler is None else float(scaler.get_scale())


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Factor on the gradients in ``on_before_optimizer_step``.

    Lightning unscales float16 gradients before that hook, except for optimizers that unscale inside
    ``step`` (fused ones), which carry this flag of torch's.
    """
    scale = loss_scale(trainer)
    is_scaled = scale is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
    return scale if scale is not None and is_scaled else 1.0


def sum_over_ranks(trainer: Trainer) -> Callable[[Tensor], Tensor] | None:
    """Give what adds up a tensor over all ranks, in place; None if there is one."""
    if trainer.world_size == 1:
        return None
    strategy = trainer.strategy

    def reduce(tensor: Tensor) -> Tensor:  # on the device: parameters may be offloaded to the CPU
        return strategy.reduce(tensor.to(strategy.root_device), reduce_op="sum").to(tensor.device)

    return reduce


def num_copies(trainer: Trainer) -> int:
    """How many ranks get the same batches."""
    if not isinstance(trainer.strategy, either(ParallelStrategy)):  # type: ignore[type-abstract]
        return 1
    replicas = trainer.strategy.distributed_sampler_kwargs["num_replicas"]
    return trainer.world_size // int(replicas)


def shown_hyperparameters(logger: TensorBoardLogger) -> dict[str, Any]:
    """Flatten a run's hyperparameters as Lightning itself does before it writes them."""
    return TensorBoardLogger._sanitize_params(_flatten_dict(_convert_params(logger.hparams)))
