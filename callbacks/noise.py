"""Log the noise of the gradient, from the microbatches that training accumulates anyway."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.callbacks._microbatches import Microbatches, ShardedMicrobatches, num_real
from lightning_linf.callbacks._optimized_parameters import named_optimized_parameters
from lightning_linf.callbacks._trainer import (
    logged_step,
    loss_scale,
    num_copies,
    sum_over_ranks,
)
from lightning_linf.callbacks.monitor import GeometryMonitor
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.distributed.shards import is_sharded
from lightning_linf.functional.noise import NoiseEstimate
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.loss_function import batch_weight


class GradientNoiseMonitor(GeometryMonitor):
    """Log how much the gradient varies over samples, from the microbatches of accumulation.

    When: the monitor reads the gradient of each microbatch between ``on_before_backward`` and
    ``on_after_backward``, on its way to ``.grad``, and logs in ``on_before_optimizer_step``. It
    unscales float16 gradients itself, and nothing has been clipped by then. A step is not measured,
    and the next step is measured instead, if it has fewer than two microbatches (as the last step
    of an epoch may) or if float16 gradients overflow. Training is not changed in any bit.

    What: the noise of one sample's gradient. A microbatch weighs as many samples as its batch has,
    or as the module's ``probe_weight(batch)`` says (the number of tokens, say). All that differs
    between microbatches counts as noise, dropout for example. If the samples of a microbatch mix,
    as in BatchNorm, the numbers are rough.

    Several devices: under DDP the monitor compares the microbatches of all ranks, before they are
    averaged; without accumulation, each rank has one. With one microbatch a rank, ``noise/...`` is
    too small by about 1 / (4 R) of itself for R ranks. ``fully_shard`` averages the gradients of
    sharded parameters over ranks in every microbatch, so a step must have two microbatches.

    Cost: no additional gradient, and nothing on steps that are not measured. A measured step needs
    memory for four vectors of d float32 numbers (for sharded parameters, the numbers of this rank)
    from the first microbatch to the last, and for two more while one is added. Ranks add up four
    such vectors at the end; with sharded parameters they add up none.

    Logged under ``geometry/``: the quantities that ``lightning_linf.quantities`` lists for this
    monitor, such as ``noise_trace`` and ``noise_scale``, and a record with a row for each parameter
    tensor. ``history`` holds the latest 1,000 measurements (``max_history``) in memory and in
    checkpoints, as dicts with ``step``, the scalars, ``tensor_names`` and ``per_tensor``.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this. Lightning logs at the same steps if ``log_every_n_steps`` has the same value.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        name: If a trainer has several monitors of this class, all but one need a name. It becomes
            part of their tags, ``geometry/NAME/...``, and tells their states apart.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, with one microbatch a step, for manual
            optimization (and so for several optimizers), a ``training_step`` that takes an
            iterator, FSDPStrategy and DeepSpeed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = GradientNoiseMonitor(every_n_steps=50)
        >>> trainer = Trainer(callbacks=[monitor], accumulate_grad_batches=8, logger=False)

        Override ``should_measure`` to choose other steps. When it is asked, ``global_step`` is the
        number of optimizer steps before the present one:

        >>> class Early(GradientNoiseMonitor):
        ...     def should_measure(self, trainer):
        ...         return trainer.global_step in (0, 10, 100)
    """

    record_tag = quantities.NOISE_OF_GRADIENT.record_tag
    needs = "two microbatches with finite gradients. Accumulate gradients over more batches."
    _microbatches: Microbatches | None = None  # of the present step, if it is measured
    _present_step: int | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            _require_microbatches(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._microbatches, self._present_step = None, None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        step = logged_step(trainer)
        if step != self._present_step:  # the first microbatch of the step
            self._present_step = step
            self._microbatches = _open(trainer, pl_module) if self.is_due(trainer) else None

        def weigh(microbatches: Microbatches) -> None:
            microbatches.weight = batch_weight(pl_module, batch)

        self._in_step(weigh)  # now, for training_step may take entries out of the batch

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._in_step(lambda microbatches: microbatches.start())

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning divides each microbatch's loss by this, also in a shorter last window.
        factor = trainer.accumulate_grad_batches / (loss_scale(trainer) or 1.0)
        self._in_step(lambda microbatches: microbatches.finish(factor))

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._microbatches is not None:
            with self.errors_handled(trainer, "measure"):
                noise = self._microbatches.noise()
                if noise is None:
                    self.postpone()
                else:
                    self._record(trainer, pl_module, noise)
        self.release()  # an optimizer that computes the loss again is done with this step

    @override
    def release(self) -> None:
        if self._microbatches is not None:
            self._microbatches.stop()
        self._microbatches = None

    def _in_step(self, action: Callable[[Microbatches], object]) -> None:
        """Keep an error until the optimizer step, where it becomes an error of all ranks."""
        microbatches = self._microbatches
        if microbatches is None:
            return
        try:
            action(microbatches)
        except Exception as error:
            microbatches.stop()
            microbatches.failure = microbatches.failure or error

    def _record(self, trainer: Trainer, pl_module: LightningModule, noise: NoiseEstimate) -> None:
        named = _parameters(trainer, pl_module)
        d = sum(num_real(p) for p in named.values())
        scalars = {
            quantities.NOISE_TRACE.tag: float(noise.trace),
            quantities.NOISE_TRACE_ERROR.tag: float(noise.trace_relative_error),
            quantities.NOISE_SCALE.tag: float(noise.noise_scale),
        }
        for name, value in noise.block_noise.items():
            scalars[quantities.NOISE.of(name)] = float(value) / d
            lower, upper = noise.block_noise_scale[name]
            scalars[quantities.NOISE_SCALE_LOWER.of(name)] = float(lower)
            scalars[quantities.NOISE_SCALE_UPPER.of(name)] = float(upper)
        columns = {
            quantities.TRACE_SHARE.name: noise.tensor_trace / noise.trace,
            quantities.SIGNAL_TO_NOISE.name: noise.tensor_signal_to_noise,
        }
        self.record(trainer, scalars, columns, list(named))


def _open(trainer: Trainer, pl_module: LightningModule) -> Microbatches:
    parameters = list(_parameters(trainer, pl_module).values())
    ranks = Ranks(sum_over_ranks(trainer), pl_module.device)
    may_overflow = loss_scale(trainer) is not None
    if not any(is_sharded(p) for p in parameters):
        return Microbatches(parameters, ranks, may_overflow=may_overflow)
    return ShardedMicrobatches(
        parameters, ranks, may_overflow=may_overflow, copies=num_copies(trainer)
    )


def _parameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, nn.Parameter]:
    return named_optimized_parameters(pl_module, *trainer.optimizers)


def _require_microbatches(trainer: Trainer, pl_module: LightningModule) -> None:
    module = type(pl_module).__name__
    is_scheduled = any(
        is_either(callback, GradientAccumulationScheduler)
        for callback in trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
    )
    is_sharded_model = is_either(trainer.strategy, ModelParallelStrategy)
    has_one = trainer.world_size == 1 or is_sharded_model  # known only as a mean over ranks
    has_one &= trainer.accumulate_grad_batches == 1 and not is_scheduled
    step = pl_module.training_step
    takes_iterator = is_param_in_hook_signature(step, "dataloader_iter", explicit=True)
    for is_wrong, problem in (
        (not pl_module.automatic_optimization,
         f"expected automatic optimization, got {module}, which steps its optimizers by hand and "
         "tells nobody its microbatches. Pass their gradients to lightning_linf.functional.noise"),
        (has_one,
         "expected gradient accumulation, whose microbatches it compares, got "
         "accumulate_grad_batches=1. Set Trainer(accumulate_grad_batches=2) or more, or use "
         "LinfSmoothnessMonitor(num_batches=2), which has probe batches of its own"),
        (takes_iterator,
         f"expected {module}.training_step to take a batch, got one that takes an iterator, so "
         "that its microbatch's weight is not known in time. Take `batch`"),
    ):  # fmt: skip
        if is_wrong:
            raise MisconfigurationException(
                f"GradientNoiseMonitor: {problem}, or remove the callback."
            )
