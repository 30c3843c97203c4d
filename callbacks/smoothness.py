"""Log which geometry the loss has: its smoothness along l-infinity, l2 and between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.argument_checks import (
    check_choice,
    check_whole,
    check_words,
)
from lightning_linf.callbacks._optimizer_coordinates import OptimizerCoordinates
from lightning_linf.callbacks._probe_in_training import probe_in_training
from lightning_linf.callbacks._probing_monitor import ProbingMonitor
from lightning_linf.callbacks._trainer import sum_over_ranks
from lightning_linf.callbacks.monitor import OnError
from lightning_linf.callbacks.noise import GradientNoiseMonitor
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.offload import Offload
from lightning_linf.functional.spectral import MatrixSplit
from lightning_linf.partition import Partition
from lightning_linf.partition.pieces import trainable_parameters
from lightning_linf.partition.structure import check_structure
from lightning_linf.partition_names import SPECTRAL, FusedQKV, MeasuredName, PartitionName
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.probe.spectral import split_matrices
from lightning_linf.recorder.stage import TrainingStage
from lightning_linf.recorder.training import training_settings
from lightning_linf.report import GeometryReport
from lightning_linf.report.scalars import columns_of, scalars_of

MeasuredIn = Literal["parameters", "optimizer"]


class LinfSmoothnessMonitor(ProbingMonitor):
    """Log how smooth the loss is for Adam, for SGD and between, and how far their steps lower it.

    Measures what :func:`~lightning_linf.measure_geometry` does: the loss that ``training_step`` (or
    the module's ``probe_loss(batch)``) returns, by products with its Hessian, over the parameters
    of the optimizers. Training is not changed in any bit.

    When: in ``on_train_batch_end`` after an optimizer step, on the batches that the step used. If
    the gradient scaler skips the step, or ``training_step`` returns None, the next step is measured
    instead. The first probe of a training refuses a loss that is not the same when it is evaluated
    again, or whose products are not the change of its gradient (:meth:`Landscape.check`).

    Cost: 2 gradients, one of them for the secant (4 with several batches), and about 2 for each
    product, times ``num_batches``; once, 7 for the check. At most ``num_probes`` + 33 products for
    each partition, 33 for "global". "spectral" takes up to 9 and a singular value decomposition of
    each matrix with each. A probe that SIGTERM interrupts is given up.

    Memory: before the first probe of a training its loss is run on tensors without values, and what
    the probe will take is logged (:func:`~lightning_linf.probe_memory`). If that is more than is
    free, the probe takes its batches in parts from the start, or warns that it will not fit and
    says what would. A probe that runs out of memory is repeated with its batches in parts.

    Several devices: every rank probes its own batches, and ranks average each product, in one
    reduction of d numbers (2 d for the (1,1)-norm) and one of five. Of sharded parameters
    (ModelParallelStrategy: ``fully_shard``, tensor parallelism, or both) and of all vectors a rank
    holds its share, and gathers one parameter at a time.

    Verdict: none while a learning rate rises in a warm-up, or before the training loss has left its
    start; the report's ``settings["stage"]`` says which ("warm-up", "start" or "training"). And
    none without an error over batches, for which ``num_batches`` has to be 2 at least.

    Logged under ``geometry/``: the quantities that ``lightning_linf.quantities`` lists for this
    monitor, and a record with a row for each parameter tensor. Each smoothness is divided by d, so
    that all of them compare. The noise is logged if there are several batches (or ranks) and no
    :class:`GradientNoiseMonitor` is beside this monitor. ``history`` holds the latest
    1,000 measurements (``max_history``) in memory and in checkpoints, as dicts with ``step``, the
    scalars, ``tensor_names`` and ``per_tensor``. ``last_report`` is the latest
    :class:`~lightning_linf.GeometryReport`.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this. Lightning logs at the same steps if ``log_every_n_steps`` has the same value.
        partitions: What to measure beside "coordinate" and "global":
            :meth:`~lightning_linf.Partition.of` lists the names. "spectral" is the geometry of
            Muon, as in :func:`~lightning_linf.measure_geometry`. For your own partitions override
            :meth:`make_partitions`.
        num_probes: Random probes for each partition, at least 4. 16 give the (1,1)-norm to about
            10 %, 64 to about 5 %.
        num_batches: Measure the mean loss over this many of the latest training batches, which
            are kept in memory. Few batches have a higher (1,1)-norm than all data, and one alone
            tells no error over batches.
        max_overhead: Time for probes, as a fraction of the time of training. Due steps that would
            exceed it are left out, which is logged once: the clock decides what is measured. The
            first probe, and two seconds of probes, are always allowed, so a short training may
            exceed it. None: every due step.
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
        offload: "cpu" lets vectors that no product needs wait on the CPU, as there.
        whole_parameters: Of a sharded module gather all on every rank, which is faster for a model
            that is small beside the memory (:class:`~lightning_linf.probe.Landscape`).
        coordinates: "parameters", or "optimizer" for those in which the optimizers step: phi, if
            they are :class:`~lightning_linf.optim.Reparameterized`, as after a swap to a rotated
            geometry. The blocks of partitions are then those of phi, and the secant smoothness is
            left out. The report names the coordinates, and those of the optimizer if they differ.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy and DeepSpeed.

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
        partitions: Sequence[MeasuredName] = (),
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
        offload: Offload | None = None,
        whole_parameters: bool = False,
        coordinates: MeasuredIn = "parameters",
    ) -> None:
        super().__init__(
            every_n_steps,
            num_batches,
            max_overhead,
            mode,
            seed,
            on_error,
            probe_loss,
            name,
            matmul_precision,
            offload,
            whole_parameters,
        )
        caller = "LinfSmoothnessMonitor"
        remedy = "For your own partitions override make_partitions."
        check_words(caller, "partitions", partitions, get_args(MeasuredName), remedy)
        check_structure(caller, output_dims, fused_qkv)
        check_whole(caller, "num_probes", num_probes, 4, "16 give a relative error of about 0.1.")
        check_choice(caller, "coordinates", coordinates, get_args(MeasuredIn))
        self.partitions: list[PartitionName] = list(
            dict.fromkeys(name for name in partitions if name != SPECTRAL)
        )
        self.with_spectral = SPECTRAL in partitions
        self.output_dims = output_dims
        self.fused_qkv: FusedQKV | None = fused_qkv
        self.num_probes = num_probes
        self.coordinates: MeasuredIn = coordinates
        self.last_report: GeometryReport | None = None
        self._stage = TrainingStage()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._stage = TrainingStage()  # another trainer may have been before

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
        self._stage.add_loss(outputs)
        if trainer.global_step != self._last_global_step:
            self._stage.add_step(trainer.optimizers)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = self.parameters_of(trainer, pl_module)
        ranks = Ranks(sum_over_ranks(trainer), pl_module.device)
        partitions = ranks.together(
            lambda: choose_partitions(
                pl_module, self.make_partitions(pl_module, parameters), parameters
            )
        )
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
        noise_is_logged = any(isinstance(each, GradientNoiseMonitor) for each in callbacks)
        probe = partial(
            probe_in_training,
            trainer,
            partitions,
            self._last_step,
            matrices=ranks.together(lambda: self._matrices(pl_module, parameters)),
            num_probes=self.num_probes,
            with_noise=not noise_is_logged,
            seed=self.seed,
        )
        stepped = ranks.together(lambda: self._stepped_in(trainer, pl_module, parameters))
        in_these = self.coordinates == "optimizer" and not stepped.is_identity
        report = self.visit(
            trainer,
            pl_module,
            parameters,
            probe,
            memory_of=lambda landscape: landscape.memory(self.num_probes, len(partitions)),
            coordinates=stepped if in_these else None,
        )
        others = {} if in_these or stepped.is_identity else {"optimizer_coordinates": stepped.name}
        about = {
            "stage": self._stage.now(sum_over_ranks(trainer)),
            **training_settings(pl_module, trainer.optimizers),
            **others,
        }
        report = replace(report, settings={**report.settings, **about})
        self.last_report = report
        seconds, overhead = self.cost(pl_module)
        cost = {quantities.PROBE_SECONDS.tag: seconds, quantities.PROBE_OVERHEAD.tag: overhead}
        scalars = {**scalars_of(report), **cost}
        columns = {name: torch.tensor(rows) for name, rows in columns_of(report).items()}
        self.record(trainer, scalars, columns, list(report.per_tensor), report=report)

    def _stepped_in(
        self, trainer: Trainer, pl_module: LightningModule, parameters: Sequence[nn.Parameter]
    ) -> OptimizerCoordinates:
        """Find the coordinates of the optimizers, for vectors of the landscape."""
        measured = list(trainable_parameters(pl_module, parameters).values())
        return OptimizerCoordinates(trainer.optimizers, measured)

    def _matrices(
        self, pl_module: LightningModule, parameters: Sequence[nn.Parameter]
    ) -> MatrixSplit | None:
        """Find the matrices for "spectral"; warn, or raise, if there are none."""
        try:
            return split_matrices(pl_module, parameters) if self.with_spectral else None
        except ValueError as error:
            if self.on_error == "raise":
                raise
            self.warn_once(SPECTRAL, f"measures without {SPECTRAL!r}. {error}")
            return None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stage": self._stage.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "stage" in state_dict:  # not so of an earlier version
            self._stage.load_state_dict(state_dict["stage"])
