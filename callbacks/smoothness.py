"""Log which geometry the loss has: its smoothness along l-infinity, l2 and between."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.argument_checks import (
    check_callable,
    check_choice,
    check_positive,
    check_whole,
    check_words,
)
from lightning_linf.callbacks._budget import TimeBudget
from lightning_linf.callbacks._kept_batch import KeptBatch
from lightning_linf.callbacks._last_step import LastStep
from lightning_linf.callbacks._optimized_parameters import (
    optimized_parameters,
    remark_on_outside,
)
from lightning_linf.callbacks._probe_in_training import probe_in_training
from lightning_linf.callbacks._recording import columns_of
from lightning_linf.callbacks._stage import TrainingStage
from lightning_linf.callbacks._strategies import refuse_tensor_parallelism
from lightning_linf.callbacks._trainer import logged_step, sum_over_ranks
from lightning_linf.callbacks._training_landscape import TrainingLandscape
from lightning_linf.callbacks.monitor import GeometryMonitor, OnError
from lightning_linf.callbacks.noise import GradientNoiseMonitor
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.partition import Partition
from lightning_linf.partition.structure import check_structure
from lightning_linf.partition_names import FusedQKV, PartitionName
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.report import GeometryReport
from lightning_linf.report.scalars import scalars_of


class LinfSmoothnessMonitor(GeometryMonitor):
    """Log how smooth the loss is for Adam, for SGD and between, and how far their steps lower it.

    Measures what :func:`~lightning_linf.measure_geometry` does: the loss that ``training_step`` (or
    the module's ``probe_loss(batch)``) returns, by products with its Hessian, over the parameters
    of the optimizers. Training is not changed in any bit.

    When: in ``on_train_batch_end`` after an optimizer step, on the batches that the step used. If
    the gradient scaler skips the step, or ``training_step`` returns None, the next step is measured
    instead. The first probe of a training refuses a loss that is not the same when it is evaluated
    again, or whose products are not the change of its gradient (:meth:`Landscape.check`).

    Cost: 1 gradient (2 with several batches), and about 2 for each product, times ``num_batches``;
    once, 7 for the check.
    At most ``num_probes`` + 33 products for each partition, 33 for "global". A probe that runs out
    of memory is repeated with its batches in parts; a probe that SIGTERM interrupts is given up.

    Several devices: every rank probes its own batches, and ranks average each product, in one
    reduction of d numbers (2 d for the (1,1)-norm) and one of five. For parameters sharded by
    ``fully_shard`` (ModelParallelStrategy) a rank needs memory for two copies of all parameters
    and for a few vectors of that length. Tensor parallelism is refused.

    Verdict: none while a learning rate rises in a warm-up, or before the training loss has left its
    start; the report's ``settings["stage"]`` says which ("warm-up", "start" or "training"). And
    none without an error over batches, for which ``num_batches`` has to be 2 at least.

    Logged under ``geometry/``: the quantities that ``lightning_linf.quantities`` lists for this
    monitor, and a record with a row for each parameter tensor. Each smoothness is divided by d, so
    that all of them compare. The noise is logged if there are several batches (or ranks) and no
    :class:`GradientNoiseMonitor` is beside this monitor. ``history`` holds all measurements in
    memory and in checkpoints, as dicts with ``step``, the scalars, ``tensor_names`` and
    ``per_tensor``. ``last_report`` is the latest :class:`~lightning_linf.GeometryReport`.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this. Lightning logs at the same steps if ``log_every_n_steps`` has the same value.
        partitions: What to measure beside "coordinate" and "global":
            :meth:`~lightning_linf.Partition.of` lists the names. For your own partitions override
            :meth:`make_partitions`.
        num_probes: Random probes for each partition, at least 4. 16 give the (1,1)-norm to about
            10 %, 64 to about 5 %.
        num_batches: Measure the mean loss over this many of the latest training batches, which
            are kept in memory. Few batches have a higher (1,1)-norm than all data, and one alone
            tells no error over batches.
        max_overhead: Time for probes, as a fraction of the time of training. Due steps that would
            exceed it are left out, which is logged once: the clock decides what is measured. The
            first probe always runs, so a short training may exceed it. None: every due step.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics (:class:`~lightning_linf.probe.Landscape`).
        seed: Seed of the probes. Every step has the same probes, so that curves are smoother.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        probe_loss: A function of module and batch that gives the scalar loss to measure, in place
            of the module's own ``probe_loss(batch)``.
        name: If a trainer has several monitors of this class, all but one need a name. It becomes
            part of their tags, ``geometry/NAME/...``, and tells their states apart. The panels of
            smoothness show the monitor without a name.
        output_dims: For "row" and "column", as in :meth:`~lightning_linf.Partition.of`.
        fused_qkv: For "head", as there.
        matmul_precision: Of probes alone, as in :func:`~lightning_linf.measure_geometry`.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy, DeepSpeed and tensor parallelism.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LinfSmoothnessMonitor(every_n_steps=500)], logger=False)

        Override ``should_measure`` to choose other steps. When it is asked, ``global_step`` is the
        number of optimizer steps before the present one:

        >>> class Early(LinfSmoothnessMonitor):
        ...     def should_measure(self, trainer):
        ...         return trainer.global_step in (0, 10, 100)
    """

    record_tag = quantities.SMOOTHNESS.record_tag

    def __init__(
        self,
        every_n_steps: int = 500,
        partitions: Sequence[PartitionName] = (),
        num_probes: int = 16,
        num_batches: int = 1,
        max_overhead: float | None = 0.1,
        mode: Mode = "eval",
        seed: int = 0,
        on_error: OnError = "warn",
        probe_loss: Callable[[Any, Any], Tensor] | None = None,
        name: str = "",
        output_dims: Mapping[str, int] | None = None,
        fused_qkv: FusedQKV | None = None,
        matmul_precision: MatmulPrecision = "highest",
    ) -> None:
        super().__init__(every_n_steps, on_error, name)
        caller = "LinfSmoothnessMonitor"
        remedy = "For your own partitions override make_partitions."
        check_words(caller, "partitions", partitions, get_args(PartitionName), remedy)
        check_structure(caller, output_dims, fused_qkv)
        check_whole(caller, "num_probes", num_probes, 4, "16 give a relative error of about 0.1.")
        check_whole(caller, "num_batches", num_batches, 1)
        check_positive(
            caller, "max_overhead", max_overhead, "0.1 is 10 % of the training time.", or_none=True
        )
        check_choice(caller, "mode", mode, get_args(Mode))
        check_choice(caller, "matmul_precision", matmul_precision, get_args(MatmulPrecision))
        check_whole(caller, "seed", seed)
        check_callable(caller, "probe_loss", probe_loss, "Give a function of module and batch.")
        self.partitions: list[PartitionName] = list(dict.fromkeys(partitions))
        self.output_dims = output_dims
        self.fused_qkv: FusedQKV | None = fused_qkv
        self.num_probes = num_probes
        self.last_report: GeometryReport | None = None
        self.num_batches = num_batches
        self.max_overhead = max_overhead
        self.mode: Mode = mode
        self.seed = seed
        self.probe_loss = probe_loss
        self._batches: deque[KeptBatch] = deque(maxlen=num_batches)
        self._last_step = LastStep()
        self._last_global_step = 0
        self._budget = TimeBudget(max_overhead)
        self._stage = TrainingStage()
        self._landscape = TrainingLandscape(
            mode, seed, probe_loss, matmul_precision, self.warn_once
        )

    @property
    @override
    def state_key(self) -> str:
        named = {"name": self.name} if self.name else {}
        return self._generate_state_key(mode=self.mode, **named)  # the rest may change on resuming

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_tensor_parallelism("LinfSmoothnessMonitor", trainer)
            self._stage = TrainingStage()  # another trainer may have been before

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step = trainer.global_step
        self._landscape.start_training()
        self._budget.start_fit(pl_module.device)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batches.append(KeptBatch(batch, batch_idx))

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self.is_due(trainer):
            self._last_step.begin(trainer)

    def make_partitions(
        self, pl_module: LightningModule, parameters: Sequence[nn.Parameter]
    ) -> list[Partition]:
        """Split the parameters of the optimizers at a measurement. Made to override.

        The base class makes the partitions that ``partitions`` names. If a partition cannot place
        a parameter, it warns and leaves the partition out (``on_error="raise"``: it raises).
        """
        options: dict[str, Any] = {"output_dims": self.output_dims, "fused_qkv": self.fused_qkv}
        made = []
        for name in self.partitions:
            try:
                made.append(Partition.of(pl_module, name, parameters=parameters, **options))
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                self.warn_once(f"partition {name}", f"measures without {name!r}. {error}")
        return made

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        has_loss = bool(outputs) or not pl_module.automatic_optimization
        if not has_loss and self._batches:
            self._batches.pop()
        self._stage.add_loss(outputs)
        if trainer.global_step == self._last_global_step:  # accumulating: no optimizer step
            return
        self._last_global_step = trainer.global_step
        self._stage.add_step(trainer.optimizers)
        if self.is_due(trainer):
            # The gradient scaler has skipped the step, or training_step has returned None.
            was_made = has_loss and not self._last_step.was_skipped(trainer)
            if not trainer.strategy.reduce_boolean_decision(was_made, all=True):
                self.postpone()
            else:
                self._measure_in_time(trainer, pl_module)
        self._last_step.forget()

    @override
    def release(self) -> None:
        self._batches.clear()
        self._last_step.forget()

    def _measure_in_time(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget.stop_training(pl_module.device)
        # Clocks differ between ranks, and one must not wait for the others in a collective.
        if trainer.strategy.broadcast(self._budget.is_affordable()):
            with self.errors_handled(trainer, "measure"):
                self._measure(trainer, pl_module)
            self._budget.stop_probe(pl_module.device)
        elif (why := self._budget.first_refusal()) is not None:
            rank_zero_info(f"{type(self).__name__}: step {logged_step(trainer)} is due and {why}")
        self._budget.start_training(pl_module.device)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = optimized_parameters(*trainer.optimizers)
        if (remark := remark_on_outside(pl_module, *trainer.optimizers)) is not None:
            self.warn_once("outside", remark)
        ranks = Ranks(sum_over_ranks(trainer), pl_module.device)
        partitions = ranks.together(
            lambda: choose_partitions(
                pl_module, self.make_partitions(pl_module, parameters), parameters
            )
        )
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
        noise_is_logged = any(isinstance(each, GradientNoiseMonitor) for each in callbacks)
        several = trainer.world_size * len(self._batches) > 1
        probe = partial(
            probe_in_training,
            trainer,
            partitions,
            self._last_step,
            num_probes=self.num_probes,
            with_noise=several and not noise_is_logged,
            seed=self.seed,
        )
        report = self._landscape.visit(trainer, pl_module, self._batches, parameters, probe)
        stage = self._stage.now(sum_over_ranks(trainer))
        report = replace(report, settings={**report.settings, "stage": stage})
        self.last_report = report
        seconds = self._budget.seconds_of_probe(pl_module.device)
        cost = {
            quantities.PROBE_SECONDS.tag: seconds,
            quantities.PROBE_OVERHEAD.tag: self._budget.overhead(seconds),
        }
        scalars = {**scalars_of(report), **cost}
        self.record(trainer, scalars, columns_of(report), list(report.per_tensor), report=report)

    @override
    def state_dict(self) -> dict[str, Any]:
        seconds, stage = self._budget.state_dict(), self._stage.state_dict()
        return {**super().state_dict(), "seconds": seconds, "stage": stage}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._budget.load_state_dict(state_dict["seconds"])
        if "stage" in state_dict:  # not so of an earlier version
            self._stage.load_state_dict(state_dict["stage"])
