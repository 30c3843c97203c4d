"""Log the noise of the gradient, from the microbatches that training accumulates anyway."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import tags
from lightning_linf.callbacks._lightning import logged_step
from lightning_linf.callbacks._monitor import GeometryMonitor, OnError, optimized_parameters
from lightning_linf.functional.noise import NoiseSums, noise_compute, noise_init, noise_update
from lightning_linf.partition import Partition
from lightning_linf.partition.pieces import trainable_parameters
from lightning_linf.probe.objective import batch_weight


class _Window:
    """The microbatches of one optimizer step, which all see the same parameters."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parameters = trainable_parameters(pl_module, optimized_parameters(*trainer.optimizers))
        self.weight = 0.0  # of the present microbatch
        self.num_microbatches = 0
        self.is_overflown = False
        self.sums: NoiseSums | None = None
        self._before: list[Tensor | None] = []

    def keep_gradients(self) -> None:
        """Copy the running sum of gradients, to which the backward pass is going to add."""
        self._before = [
            None if p.grad is None else p.grad.detach().to_dense().clone()
            for p in self.parameters.values()
        ]

    def take_added(self) -> Tensor:
        """Give what the backward pass has added, and free the copy. Shape: (d,)."""
        pairs = zip(self.parameters.values(), self._before, strict=True)
        parts = [_added(p, before).reshape(-1) for p, before in pairs]
        self._before = []
        return torch.cat(parts)

    def add(self, gradient: Tensor) -> None:
        if self.sums is None:
            self.sums = noise_init(len(gradient), gradient)
        noise_update(self.sums, gradient, self.weight)
        self.num_microbatches += 1


class GradientNoiseMonitor(GeometryMonitor):
    """Log the variance of the gradient over samples, from the microbatches of accumulation.

    Reads ``.grad`` in ``on_before_backward`` and ``on_after_backward``, which differ by the
    gradient of a microbatch, and logs in ``on_before_optimizer_step``; nothing has been clipped by
    then, and float16 gradients are unscaled here. It needs no gradient of its own and communicates
    nothing. Cost on measured steps, nothing on others: a copy of the gradient, three vectors of d
    float32 numbers from the first microbatch to the last, and a few more while one is added.
    Training is not changed in any bit.

    A microbatch weighs as many samples as its batch has, or what the module's
    ``probe_weight(batch)`` says (tokens, say), and the noise is that of one such sample. Whatever
    differs between microbatches counts as noise: dropout, and rounding of bfloat16 gradients, up to
    0.4 % of the running sum. Where samples of a microbatch mix, as in BatchNorm, the numbers are
    rough.

    A step with fewer than two microbatches, as an epoch's last may be, or with overflowing float16
    gradients is passed over, and the next step is measured in its place.

    Logged under ``geometry/``: ``noise_trace``, the variance of one sample's gradient, summed over
    entries, and ``noise_trace_relative_error`` (standard error); ``noise_scale``, the trace over
    the gradient's squared norm, in samples; ``noise/coordinate`` and ``noise/global``, mean and
    root mean square of the entries' standard deviations, which compare; and one record with each
    parameter tensor's share of the trace and signal-to-noise ratio
    (:class:`~lightning_linf.functional.Noise`). ``history`` holds everything in memory and in
    checkpoints: one dict per measurement with ``step``, the scalars, ``tensor_names`` and
    ``per_tensor``.

    Args:
        every_n_steps: Measure at optimizer steps divisible by this, counted from 1, which are the
            steps at which Lightning logs when ``log_every_n_steps`` is the same.
        on_error: "warn" says once what went wrong and lets the training go on; "raise" ends it.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, without gradient accumulation, for manual
            optimization (and so for several optimizers), a ``training_step`` that takes an
            iterator, several devices, and strategies that shard parameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = GradientNoiseMonitor(every_n_steps=50)
        >>> trainer = Trainer(callbacks=[monitor], accumulate_grad_batches=8, logger=False)
    """

    record_tag = tags.PREFIX + "noise_per_tensor"

    def __init__(self, every_n_steps: int = 50, on_error: OnError = "warn") -> None:
        super().__init__(every_n_steps, on_error)
        self._window: _Window | None = None  # of the present step, if it is measured
        self._window_step: int | None = None
        self._is_postponed = False  # a due step was passed over

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            _require_microbatches(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._window, self._window_step, self._is_postponed = None, None, False

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        step = logged_step(trainer)
        if step != self._window_step:  # the first microbatch of the step
            self._window_step = step
            is_measured = self._is_due(trainer) or self._is_postponed
            self._window = _Window(trainer, pl_module) if is_measured else None
            self._is_postponed = False
        with self._on_window(trainer) as window:
            if window:  # by now, for training_step may take entries out of the batch
                window.weight = batch_weight(pl_module, batch)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        with self._on_window(trainer) as window:
            if window:  # the first time, gradients have been zeroed just now
                window.keep_gradients()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._on_window(trainer) as window:
            if window and not window.is_overflown:
                scale = _loss_scale(trainer)
                # Lightning divides each microbatch's loss by this, also in a shorter last window.
                factor = trainer.accumulate_grad_batches / (scale or 1.0)
                gradient = window.take_added() * factor
                if scale is not None and not gradient.isfinite().all():
                    window.is_overflown = True  # the scaler will skip the step, too
                else:
                    window.add(gradient)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        with self._on_window(trainer) as window:
            if window:
                self._is_postponed = window.is_overflown or window.num_microbatches < 2
                if not self._is_postponed:
                    self._measure(trainer, pl_module, window)
        self._window = None  # an optimizer that computes the loss again is done with this step

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._window = None
        if self._is_postponed and not self.history:
            self._warn_once(
                "never",
                "no step from the first due one on had two microbatches with finite gradients, so "
                "nothing was measured. Accumulate gradients over more batches.",
            )

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._window = None

    @contextmanager
    def _on_window(self, trainer: Trainer) -> Iterator[_Window | None]:
        """Handle errors; after one, the present step is not measured."""
        window, self._window = self._window, None
        with self._errors_handled(trainer, "measure"):
            yield window
            self._window = window

    def _measure(self, trainer: Trainer, pl_module: LightningModule, window: _Window) -> None:
        assert window.sums is not None
        sizes = [p.numel() for p in window.parameters.values()]
        parameters = list(window.parameters.values())
        coordinate = Partition.of(pl_module, "coordinate", parameters=parameters)
        whole = Partition.of(pl_module, "global", parameters=parameters)
        partitions = {"coordinate": coordinate, "global": whole}
        result = noise_compute(window.sums, sizes, partitions)
        scalars = {
            tags.NOISE_TRACE: float(result.trace),
            tags.NOISE_TRACE_ERROR: float(result.trace_relative_error),
            tags.NOISE_SCALE: float(result.noise_scale),
            tags.of_partition(tags.NOISE, "coordinate"): float(result.block_noise["coordinate"])
            / sum(sizes),
            tags.of_partition(tags.NOISE, "global"): float(result.block_noise["global"])
            / sum(sizes),
        }
        columns = {
            "trace_share": result.tensor_trace / result.trace,
            "signal_to_noise": result.tensor_signal_to_noise,
        }
        self.record(trainer, scalars, columns, list(window.parameters))


def _added(p: nn.Parameter, before: Tensor | None) -> Tensor:
    dtype = torch.promote_types(p.dtype, torch.float32)
    if p.grad is None:  # the loss does not reach it
        return torch.zeros_like(p, dtype=dtype)
    after = p.grad.detach().to_dense().to(dtype)
    return after if before is None else after - before


def _loss_scale(trainer: Trainer) -> float | None:
    """Factor on gradients as long as microbatches are added to; None without a scaler."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return None if scaler is None else float(scaler.get_scale())


def _require_microbatches(trainer: Trainer, pl_module: LightningModule) -> None:
    module = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"GradientNoiseMonitor: expected automatic optimization, got {module}, which steps its "
            "optimizers by hand and tells nobody its microbatches. Pass their gradients to "
            "lightning_linf.functional.noise, or remove the callback."
        )
    is_scheduled = any(
        isinstance(callback, GradientAccumulationScheduler)
        for callback in trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
    )
    if trainer.accumulate_grad_batches == 1 and not is_scheduled:
        raise MisconfigurationException(
            "GradientNoiseMonitor: expected gradient accumulation, whose microbatches it compares, "
            "got accumulate_grad_batches=1. Set Trainer(accumulate_grad_batches=2) or more, or use "
            "LinfSmoothnessMonitor(num_batches=2), which has probe batches of its own."
        )
    if trainer.world_size > 1:
        raise MisconfigurationException(
            f"GradientNoiseMonitor: expected one device, got {trainer.world_size}, over which only "
            "the last microbatch's gradient is averaged. Use Trainer(devices=1, num_nodes=1) or "
            "remove the callback."
        )
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            f"GradientNoiseMonitor: expected {module}.training_step to take a batch, got one that "
            "takes an iterator, so that its microbatch's weight is not known in time. Take `batch` "
            "or remove the callback."
        )
