"""The few private names of Lightning that right numbers need, each with its reason."""

from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import Optimizer


def logged_step(trainer: Trainer) -> int:
    """Index of the present optimizer step on the x axis of the user's own curves.

    ``self.log`` and ``LearningRateMonitor`` use this counter; ``global_step`` differs from it with
    several optimizers, and within a step.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_dev_run(trainer: Trainer) -> bool:
    """Whether ``fast_dev_run`` was asked for: an attribute that the class does not declare."""
    return bool(getattr(trainer, "fast_dev_run", False))


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Factor on the gradients in ``on_before_optimizer_step``.

    Lightning unscales float16 gradients before that hook, except for optimizers that unscale inside
    ``step`` (fused ones), which carry this flag of torch's.
    """
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def shown_hyperparameters(logger: TensorBoardLogger) -> dict[str, Any]:
    """Flatten a run's hyperparameters as Lightning itself does before it writes them."""
    return TensorBoardLogger._sanitize_params(_flatten_dict(_convert_params(logger.hparams)))
