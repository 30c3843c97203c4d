"""Log how unevenly the gradient is spread over coordinates."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import tags
from lightning_linf.callbacks._lightning import gradient_scale, logged_step
from lightning_linf.callbacks._monitor import GeometryMonitor, OnError, optimized_parameters
from lightning_linf.functional.heterogeneity import (
    QUANTILES,
    Heterogeneity,
    heterogeneity_compute,
    heterogeneity_update,
    log10_histogram,
    merge_tensors,
)
from lightning_linf.partition.pieces import trainable_parameters

_MEDIAN = QUANTILES.index(0.5)


class GradientHeterogeneityMonitor(GeometryMonitor):
    """Log density, Gini coefficient, energy share and more of the gradient that training uses.

    Reads ``.grad`` in ``on_before_optimizer_step``: after DDP has averaged and AMP unscaled it,
    before clipping. A parameter of the optimizer without a gradient counts as zeros. All ranks hold
    the same gradient, so nothing is communicated. Cost: about three passes over the gradient on
    measured steps, nothing on others. Training is not changed in any bit.

    Logged under ``geometry/``: ``density``, ``gini``, ``top1_energy``, ``zero_fraction``,
    ``median_log10_grad``, ``num_nonfinite`` (:class:`~lightning_linf.functional.Heterogeneity`),
    and one record per parameter tensor, with a histogram of log10|g|. With several optimizers each
    gets its own tags, ending in ``/optimizer0`` and so on. ``history`` holds it in memory and in
    checkpoints: one dict per measurement with ``step``, the scalars, ``tensor_names`` and
    ``per_tensor``.

    Args:
        every_n_steps: Measure at optimizer steps divisible by this, counted from 1, which are the
            steps at which Lightning logs when ``log_every_n_steps`` is the same.
        on_error: "warn" says once what went wrong and lets the training go on; "raise" ends it.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for strategies that shard parameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[GradientHeterogeneityMonitor(every_n_steps=50)], logger=False
        ... )
    """

    record_tag = tags.PREFIX + "heterogeneity_per_tensor"

    def __init__(self, every_n_steps: int = 50, on_error: OnError = "warn") -> None:
        super().__init__(every_n_steps, on_error)
        self._measured: tuple[int, set[int]] = (-1, set())

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._is_due(trainer) and self._is_first_this_step(trainer, optimizer):
            with self._errors_handled(trainer, "measure"):
                self._measure(trainer, pl_module, optimizer)

    def _is_first_this_step(self, trainer: Trainer, optimizer: Optimizer) -> bool:
        """Manual optimization may step an optimizer several times between two batches."""
        step = logged_step(trainer)
        if self._measured[0] != step:
            self._measured = (step, set())
        is_first = id(optimizer) not in self._measured[1]
        self._measured[1].add(id(optimizer))
        return is_first

    def _measure(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = trainable_parameters(pl_module, optimized_parameters(optimizer))
        if all(p.grad is None for p in parameters.values()):
            raise ValueError("expected gradients before the optimizer step, but all are None.")
        gradients = {
            # That of a parameter which the loss does not reach is zero.
            name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
            for name, p in parameters.items()
        }
        scale = gradient_scale(trainer, optimizer)
        if scale != 1.0:
            gradients = {name: gradient / scale for name, gradient in gradients.items()}

        sums = heterogeneity_update(list(gradients.values()))
        merged = merge_tensors(sums)
        each, whole = heterogeneity_compute(sums), heterogeneity_compute(merged)
        scalars = {
            tags.DENSITY: float(whole.density),
            tags.GINI: float(whole.gini),
            tags.TOP_ENERGY: float(whole.top_energy),
            tags.ZERO_FRACTION: float(whole.zero_fraction),
            tags.MEDIAN_LOG10_GRAD: float(whole.log10_quantiles[_MEDIAN]),
            tags.NUM_NONFINITE: float(whole.num_inf + whole.num_nan),
        }
        self.record(
            trainer,
            scalars,
            _columns(each),
            list(gradients),
            suffix=_suffix(trainer, optimizer),
            whole=_columns(whole),
            histogram=log10_histogram(merged),
        )


def _columns(result: Heterogeneity) -> dict[str, Tensor]:
    return {
        "density": result.density,
        "gini": result.gini,
        "top1_energy": result.top_energy,
        "zero_fraction": result.zero_fraction,
        "log10_quantiles": result.log10_quantiles,
    }


def _suffix(trainer: Trainer, optimizer: Optimizer) -> str:
    if len(trainer.optimizers) < 2:
        return ""
    numbers = [i for i, known in enumerate(trainer.optimizers) if known is optimizer]
    return f"/optimizer{numbers[0]}" if numbers else ""
