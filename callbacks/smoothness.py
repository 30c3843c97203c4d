"""Log which geometry the loss has: its smoothness along l-infinity, l2 and between."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import tags
from lightning_linf.callbacks._budget import TimeBudget
from lightning_linf.callbacks._kept_batch import KeptBatch
from lightning_linf.callbacks._lightning import loss_scale, sum_over_ranks
from lightning_linf.callbacks._monitor import (
    GeometryMonitor,
    OnError,
    optimized_parameters,
    outside_parameters,
)
from lightning_linf.callbacks._progress import probe_progress
from lightning_linf.callbacks._scalars import scalars_of
from lightning_linf.callbacks._training_landscape import TrainingLandscape
from lightning_linf.callbacks.noise import GradientNoiseMonitor
from lightning_linf.distributed.gathering import gather
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.lightning_packages import is_either
from lightning_linf.partition import Partition
from lightning_linf.partition.attention import FusedQKV
from lightning_linf.partition.structure import PartitionName, check_structure
from lightning_linf.probe import Landscape, ProbeError, measure_landscape
from lightning_linf.probe.arguments import (
    check_callable,
    check_choice,
    check_positive,
    check_whole,
)
from lightning_linf.probe.brackets import OPERATOR_HVPS
from lightning_linf.probe.landscape import Mode
from lightning_linf.probe.measure import measure_noise
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.report import GeometryReport


class LinfSmoothnessMonitor(GeometryMonitor):
    """Log how smooth the loss is for Adam, for SGD and between, and which one that favours.

    Probes in ``on_train_batch_end``, right after an optimizer step, on the training batches it has
    just used (as they came to ``training_step``), over the parameters of the optimizers, with
    Hessian-vector products of the loss that ``training_step`` (or the module's
    ``probe_loss(batch)``) returns: what :func:`~lightning_linf.measure_geometry` does. Training is
    not changed in any bit. Cost: about 1 + 2 gradients a product times ``num_batches``, with
    ``num_probes`` + 32 products for each partition but "global", and some ten for that.
    Under DDP every rank probes its own batches and each product is averaged over ranks: one
    reduction of d numbers per product (2 d for those of the (1,1)-norm), and one of five.
    Parameters sharded by ``fully_shard`` (ModelParallelStrategy) are gathered for the probe, so
    that a rank needs memory for whole ones, twice, and for a few whole vectors; tensor parallelism
    is refused.
    The first probe of a training also tries whether the loss is the same when evaluated again, and
    whether products are the change of its gradient (:meth:`Landscape.check`), at the cost of about
    7 gradients; it refuses a loss that fails.
    A step that the gradient scaler skips, or for which ``training_step`` returns None, is passed
    over, and the next one is measured in its place.
    A probe that runs out of memory is repeated with its batches in parts; one that SIGTERM
    interrupts is given up.

    Logged under ``geometry/``, smoothness in loss per parameter squared and over d, so that all
    compare: ``one_one_norm_per_param`` and ``lambda_max``; ``smoothness_ratio``, the second over
    the first; ``one_one_norm_relative_error`` (standard error of the probes) and
    ``lambda_max_relative_error`` (of its upper end). One microbatch overstates the (1,1)-norm; with
    several batches (or ranks) ``one_one_norm_batch_excess`` is what two halves of them exceed it
    by, and it is too large by roughly 1 to 2.4 times that, or more if they are few
    (:func:`~lightning_linf.functional.batch_excess.batch_excess`). Of each partition but "global":
    ``operator_norm_lower/...`` and ``operator_norm_upper/...``, between which lies what a step of
    its steepest descent meets;
    ``advantage_lower/...`` and ``advantage_upper/...``, what such a step promises over one of SGD's
    geometry ("coordinate" is Adam's); ``step_advantage/...``, the same by the curvature along the
    gradient's own step; for those between also ``smoothness_upper/...`` and ``r_squared/...``. Of
    each partition ``secant/...``, the smoothness along training's own last step, and with several
    batches (or ranks), and no :class:`GradientNoiseMonitor` beside it, ``noise/...``,
    ``noise_trace`` and ``noise_scale``. Then ``probe_loss``, ``probe_hvps``, ``probe_seconds``,
    ``probe_overhead`` (time of all probes over that of training), and one record of each parameter
    tensor. ``history`` holds everything in memory and in checkpoints: one dict per measurement with
    ``step``, the scalars, ``tensor_names`` and ``per_tensor``. ``last_report`` is the latest
    :class:`~lightning_linf.GeometryReport`.

    Args:
        every_n_steps: Measure at optimizer steps divisible by this, counted from 1, which are the
            steps at which Lightning logs when ``log_every_n_steps`` is the same.
        partitions: What to measure beside "coordinate" and "global":
            :meth:`~lightning_linf.Partition.of` lists the names. For your own partitions override
            :meth:`make_partitions`.
        num_probes: Probes of each partition, at least 4; 16 give the (1,1)-norm to about a tenth,
            four times as many to half of it.
        num_batches: Measure the mean loss over this many of the latest training batches, which
            are kept in memory.
        max_overhead: Time to spend on probes, as a fraction of the time spent on training; steps
            that would exceed it are passed over. The first probe always runs. None: no limit.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics (:class:`~lightning_linf.probe.Landscape`).
        seed: Of the probes; the same probes serve every step, so that curves are smoother.
        on_error: "warn" says once what went wrong and lets the training go on; "raise" ends it.
        probe_loss: From module and batch to the scalar loss to measure, for modules that one cannot
            give a ``probe_loss(batch)`` of their own. It takes the place of that.
        name: Where several of these monitors are in a trainer, all but one need one. It goes into
            their tags, ``geometry/NAME/...``, and tells their states apart. The panels of
            smoothness in TensorBoard and in reports show the one without a name.
        output_dims: Of "row" and "column" among ``partitions``, as in
            :meth:`~lightning_linf.Partition.of`.
        fused_qkv: Of "head", as there.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy, DeepSpeed and tensor parallelism.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LinfSmoothnessMonitor(every_n_steps=500)], logger=False)
    """

    record_tag = tags.PREFIX + "smoothness_per_tensor"

    def __init__(
        self,
        every_n_steps: int = 500,
        partitions: Sequence[PartitionName] = (),
        num_probes: int = 16,
        num_batches: int = 1,
        max_overhead: float | None = None,
        mode: Mode = "eval",
        seed: int = 0,
        on_error: OnError = "warn",
        probe_loss: Callable[[Any, Any], Tensor] | None = None,
        name: str = "",
        output_dims: Mapping[str, int] | None = None,
        fused_qkv: FusedQKV | None = None,
    ) -> None:
        super().__init__(every_n_steps, on_error, name)
        is_list = isinstance(partitions, Sequence) and not isinstance(partitions, str)
        if not is_list or any(name not in get_args(PartitionName) for name in partitions):
            raise ValueError(
                "LinfSmoothnessMonitor: expected `partitions` to be a list of names out of "
                f"{', '.join(get_args(PartitionName))}, got {partitions!r}. For your own "
                "partitions override make_partitions."
            )
        caller = "LinfSmoothnessMonitor"
        check_structure(caller, output_dims, fused_qkv)
        check_whole(caller, "num_probes", num_probes, 4, "16 give a relative error of about 0.1.")
        check_whole(caller, "num_batches", num_batches, 1)
        check_positive(
            caller, "max_overhead", max_overhead, "0.1 is 10 % of the training time.", or_none=True
        )
        check_choice(caller, "mode", mode, get_args(Mode))
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
        self._before: dict[int, Tensor] = {}  # parameters before a step to be measured, by id
        self._scale_before: float | None = None  # of the loss in that step
        self._last_global_step = 0
        self._budget = TimeBudget(max_overhead)
        self._landscape = TrainingLandscape(mode, seed, probe_loss)

    @property
    @override
    def state_key(self) -> str:
        named = {"name": self.name} if self.name else {}
        return self._generate_state_key(mode=self.mode, **named)  # the rest may change on resuming

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        strategy = trainer.strategy
        if stage == "fit" and is_either(strategy, ModelParallelStrategy):
            size = strategy.device_mesh["tensor_parallel"].size()
            if size > 1:
                raise MisconfigurationException(
                    "LinfSmoothnessMonitor: expected parameters sharded by fully_shard alone, got "
                    f"tensor parallelism over {size} devices. Use "
                    "ModelParallelStrategy(tensor_parallel_size=1) or remove the callback."
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step = trainer.global_step
        self._landscape.start_training()
        self._budget.start_training(pl_module.device)

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
        if self._is_due(trainer) and not self._before:  # the first of several optimizers
            self._before = {
                id(p): p.detach().clone() for p in optimized_parameters(*trainer.optimizers)
            }
            self._scale_before = loss_scale(trainer)

    def make_partitions(
        self, pl_module: LightningModule, parameters: Sequence[nn.Parameter]
    ) -> list[Partition]:
        """Split the parameters of the optimizers at a measurement. Made to override.

        The base makes those of ``partitions``, without those that cannot place a parameter, of
        which it warns (or raises, with ``on_error="raise"``).
        """
        made = []
        for name in self.partitions:
            try:
                made.append(
                    Partition.of(
                        pl_module,
                        name,
                        parameters=parameters,
                        output_dims=self.output_dims,
                        fused_qkv=self.fused_qkv,
                    )
                )
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                self._warn_once(f"partition {name}", f"measures without {name!r}. {error}")
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
        if trainer.global_step == self._last_global_step:  # accumulating: no optimizer step
            return
        self._last_global_step = trainer.global_step
        if self._is_due(trainer):
            # The gradient scaler has skipped the step, or training_step has returned None.
            was_made = has_loss and not self._is_skipped(trainer)
            if not trainer.strategy.reduce_boolean_decision(was_made, all=True):
                self._postpone()
            else:
                self._measure_in_time(trainer, pl_module)
        self._before = {}

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._forget()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._forget()

    def _forget(self) -> None:
        self._batches.clear()
        self._before = {}

    def _is_skipped(self, trainer: Trainer) -> bool:
        """Whether the scaler has left out the step because of overflowing gradients."""
        scale = loss_scale(trainer)
        return scale is not None and self._scale_before is not None and scale < self._scale_before

    def _measure_in_time(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget.stop_training(pl_module.device)
        # Clocks differ between ranks, and one must not wait for the others in a collective.
        if trainer.strategy.broadcast(self._budget.is_affordable()):
            with self._errors_handled(trainer, "measure"):
                self._measure(trainer, pl_module)
            self._budget.stop_probe(pl_module.device)
        self._budget.start_training(pl_module.device)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = optimized_parameters(*trainer.optimizers)
        outside = outside_parameters(pl_module, *trainer.optimizers)
        if outside:
            shapes = ", ".join(str(tuple(p.shape)) for p in outside.values())
            self._warn_once(
                "outside",
                "holds constant what the optimizers step but the module's named_parameters() does "
                f"not list: of shape {shapes}. Make it an attribute of an nn.Module to measure it.",
            )
        ranks = Ranks(sum_over_ranks(trainer), pl_module.device)
        partitions = ranks.together(
            lambda: choose_partitions(
                pl_module, self.make_partitions(pl_module, parameters), parameters
            )
        )
        several = trainer.world_size * len(self._batches) > 1
        noise_is_logged = any(
            isinstance(callback, GradientNoiseMonitor)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        )
        most_hvps = (self.num_probes + OPERATOR_HVPS) * len(partitions)

        def probe(landscape: Landscape) -> GeometryReport:
            with probe_progress(trainer, "Probing", most_hvps) as advance, landscape:

                def on_hvps(count: int) -> None:
                    if trainer.received_sigterm:
                        raise ProbeError("given up, because SIGTERM asks the training to end.")
                    advance(count)

                return measure_landscape(
                    landscape,
                    partitions,
                    num_probes=self.num_probes,
                    noise=measure_noise(landscape) if several and not noise_is_logged else None,
                    last_step=self._last_step(landscape),
                    seed=self.seed,
                    on_hvps=on_hvps,
                )

        report = self._landscape.visit(trainer, pl_module, self._batches, parameters, probe)
        if self._landscape.remark is not None:
            self._warn_once("detached", self._landscape.remark)
        if self._landscape.num_parts > 1:
            self._warn_once(
                f"parts {self._landscape.num_parts}",
                "a probe ran out of memory, so from now on it takes its batches in "
                f"{self._landscape.num_parts} parts. The numbers are the same.",
            )
        self.last_report = report
        rows = report.per_tensor.values()
        columns = {
            name: torch.tensor([row[name] for row in rows])
            for name in ("one_one_norm_share", "signal_to_noise")
            if all(name in row for row in rows)
        }
        seconds = self._budget.seconds_of_probe(pl_module.device)
        cost = {tags.PROBE_SECONDS: seconds, tags.PROBE_OVERHEAD: self._budget.overhead(seconds)}
        scalars = {**scalars_of(report), **cost}
        self.record(trainer, scalars, columns, list(report.per_tensor), report=report)

    def _last_step(self, landscape: Landscape) -> Tensor | None:
        """What the optimizer has just added to the parameters. Shape: (d,)."""
        vector = landscape.parameters
        if not all(id(p) in self._before for p in vector.originals):
            return None  # a parameter group that the step itself has added
        moves = landscape.ranks.together(
            lambda: [
                p.detach().to(vector.dtype) - self._before[id(p)].to(vector.dtype)
                for p in vector.originals
            ]
        )
        return vector.flatten(gather(moves))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seconds": self._budget.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._budget.load_state_dict(state_dict["seconds"])
