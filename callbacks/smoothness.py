"""Log which geometry the loss has: its smoothness along l-infinity, l2 and between."""

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import tags
from lightning_linf.callbacks._monitor import GeometryMonitor, OnError, optimized_parameters
from lightning_linf.callbacks._progress import probe_progress
from lightning_linf.callbacks.noise import GradientNoiseMonitor
from lightning_linf.functional.random import derive_seed
from lightning_linf.partition import Partition
from lightning_linf.partition.structure import PartitionName
from lightning_linf.probe import Landscape, ProbeError, measure_landscape
from lightning_linf.probe.brackets import OPERATOR_HVPS
from lightning_linf.probe.geometry import choose_partitions, measure_noise
from lightning_linf.probe.landscape import Mode
from lightning_linf.report import GeometryReport


class _KeptBatch:
    """A batch as it was before ``training_step``, which may take entries out of its containers."""

    def __init__(self, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx
        self._tensors: list[Tensor] = []
        self._batch = apply_to_collection(batch, Tensor, self._keep)
        self._versions = self._present_versions()

    def batch(self) -> Any:
        """Give it, if its tensors are unchanged."""
        if self._present_versions() != self._versions:
            raise ProbeError(
                "probe: expected a batch as training_step got it, but its tensors were changed in "
                "place. Work on copies in training_step."
            )
        return self._batch

    def _keep(self, tensor: Tensor) -> Tensor:
        self._tensors.append(tensor)
        return tensor

    def _present_versions(self) -> list[int]:
        return [t._version for t in self._tensors if not t.is_inference()]


class LinfSmoothnessMonitor(GeometryMonitor):
    """Log how smooth the loss is for Adam, for SGD and between, and which one that favours.

    Probes in ``on_train_batch_end``, right after an optimizer step, on the training batches it has
    just used (as they came to ``training_step``), over the parameters of the optimizers, with
    Hessian-vector products of the loss that ``training_step`` (or the module's
    ``probe_loss(batch)``) returns: what :func:`~lightning_linf.measure_geometry` does. Training is
    not changed in any bit. Cost: about 1 + 2 gradients a product times ``num_batches``, with
    ``num_probes`` + 32 products for each partition but "global", and some ten for that.
    Under DDP every rank probes its own batches and each product is averaged over ranks: one
    reduction of d numbers per product.

    Logged under ``geometry/``, smoothness in loss per parameter squared and over d, so that all
    compare: ``one_one_norm_per_param`` and ``lambda_max``; ``smoothness_ratio``, the second over
    the first; ``one_one_norm_relative_error`` (standard error) and ``lambda_max_relative_error``
    (residual). Of each partition but "global": ``operator_norm_lower/...`` and
    ``operator_norm_upper/...``, between which lies what a step of its steepest descent meets;
    ``advantage_lower/...`` and ``advantage_upper/...``, what such a step promises over one of SGD's
    geometry ("coordinate" is Adam's); ``step_advantage/...``, the same by the curvature along the
    gradient's own step; for those between also ``smoothness_upper/...`` and ``r_squared/...``. Of
    each partition ``secant/...``, the smoothness along training's own last step, and with several
    batches (or ranks), and no :class:`GradientNoiseMonitor` beside it, ``noise/...``,
    ``noise_trace`` and ``noise_scale``. Then ``probe_loss``, ``probe_hvps``, ``probe_seconds``, and
    one record of each parameter tensor. ``history`` holds everything in memory and in checkpoints:
    one dict per measurement with ``step``, the scalars, ``tensor_names`` and ``per_tensor``.
    ``last_report`` is the latest :class:`~lightning_linf.GeometryReport`.

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

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for strategies that shard parameters.

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
    ) -> None:
        super().__init__(every_n_steps, on_error)
        unknown = [name for name in partitions if name not in get_args(PartitionName)]
        if unknown or isinstance(partitions, str):
            raise ValueError(
                "LinfSmoothnessMonitor: expected `partitions` to be a list of names out of "
                f"{', '.join(get_args(PartitionName))}, got {partitions!r}. For your own "
                "partitions override make_partitions."
            )
        if num_probes < 4:
            raise ValueError(
                f"LinfSmoothnessMonitor: expected `num_probes` >= 4, got {num_probes}. "
                "16 give a relative error of about 0.1."
            )
        if num_batches < 1:
            raise ValueError(
                f"LinfSmoothnessMonitor: expected `num_batches` >= 1, got {num_batches}."
            )
        if max_overhead is not None and not max_overhead > 0:
            raise ValueError(
                "LinfSmoothnessMonitor: expected `max_overhead` > 0 (0.1 is 10 % of the training "
                f"time) or None, got {max_overhead}."
            )
        if mode not in ("eval", "train"):
            raise ValueError(
                f'LinfSmoothnessMonitor: expected `mode` "eval" or "train", got {mode!r}.'
            )
        self.partitions: list[PartitionName] = list(dict.fromkeys(partitions))
        self.num_probes = num_probes
        self.last_report: GeometryReport | None = None
        self.num_batches = num_batches
        self.max_overhead = max_overhead
        self.mode: Mode = mode
        self.seed = seed
        self._batches: deque[_KeptBatch] = deque(maxlen=num_batches)
        self._before: dict[int, Tensor] = {}  # parameters before a step to be measured, by id
        self._last_global_step = 0
        self._probe_seconds = 0.0  # of all probes, and of the last one
        self._last_probe_seconds = 0.0
        self._train_seconds = 0.0  # of training without probes, up to _clock
        self._clock = 0.0

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(mode=self.mode)  # the rest may change on resuming

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step = trainer.global_step
        self._clock = time.perf_counter()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batches.append(_KeptBatch(batch, batch_idx))

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._is_due(trainer) and not self._before:  # the first of several optimizers
            self._before = {
                id(p): p.detach().clone() for p in optimized_parameters(*trainer.optimizers)
            }

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
                made.append(Partition.of(pl_module, name, parameters=parameters))
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
        if trainer.global_step == self._last_global_step:  # accumulating: no optimizer step
            return
        self._last_global_step = trainer.global_step
        if self._is_due(trainer):
            now = time.perf_counter()
            self._train_seconds += now - self._clock
            if self._is_affordable(trainer):
                with self._errors_handled(trainer, "measure"):
                    self._measure(trainer, pl_module)
                self._last_probe_seconds = time.perf_counter() - now
                self._probe_seconds += self._last_probe_seconds
            self._clock = time.perf_counter()
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

    def _is_affordable(self, trainer: Trainer) -> bool:
        if self.max_overhead is None:
            return True
        expected = self._probe_seconds + self._last_probe_seconds
        affordable = expected <= self.max_overhead * self._train_seconds
        # Clocks differ between ranks, and one must not wait for the others in a collective.
        return bool(trainer.strategy.broadcast(affordable or self._probe_seconds == 0.0))

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reduce = (
            partial(trainer.strategy.reduce, reduce_op="sum") if trainer.world_size > 1 else None
        )
        parameters = optimized_parameters(*trainer.optimizers)
        partitions = choose_partitions(
            pl_module, self.make_partitions(pl_module, parameters), parameters
        )
        most_hvps = (self.num_probes + OPERATOR_HVPS) * len(partitions)
        with (
            probe_progress(trainer, "Probing", most_hvps) as advance,
            Landscape(
                pl_module,
                [kept.batch() for kept in self._batches],
                batch_indices=[kept.batch_idx for kept in self._batches],
                parameters=parameters,
                mode=self.mode,
                seed=derive_seed("masks", self.seed),
                reduce=reduce,
            ) as landscape,
        ):
            several = trainer.world_size * len(self._batches) > 1
            noise_is_logged = any(
                isinstance(callback, GradientNoiseMonitor)
                for callback in trainer.callbacks  # type: ignore[attr-defined]
            )
            report = measure_landscape(
                landscape,
                partitions,
                num_probes=self.num_probes,
                noise=measure_noise(landscape) if several and not noise_is_logged else None,
                last_step=self._last_step(landscape),
                seed=self.seed,
                on_hvps=advance,
            )
        self.last_report = report
        rows = report.per_tensor.values()
        columns = {
            name: torch.tensor([row[name] for row in rows])
            for name in ("one_one_norm_share", "signal_to_noise")
            if all(name in row for row in rows)
        }
        self.record(trainer, _scalars(report), columns, list(report.per_tensor))

    def _last_step(self, landscape: Landscape) -> Tensor | None:
        """What the optimizer has just added to the parameters. Shape: (d,)."""
        vector = landscape.parameters
        if not all(id(p) in self._before for p in vector.originals):
            return None  # a parameter group that the step itself has added
        moves = [
            p.detach().to(vector.dtype) - self._before[id(p)].to(vector.dtype)
            for p in vector.originals
        ]
        return vector.flatten(moves)

    @override
    def state_dict(self) -> dict[str, Any]:
        seconds = {"probe": self._probe_seconds, "train": self._train_seconds}
        return {**super().state_dict(), "seconds": seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._probe_seconds = state_dict["seconds"]["probe"]
        self._train_seconds = state_dict["seconds"]["train"]


def _scalars(report: GeometryReport) -> dict[str, float]:
    """What is logged of a report: by tag, without what follows from another tag."""
    d = report.num_params
    scalars = {
        tags.ONE_ONE_NORM_PER_PARAM: report.one_one_norm_per_param,
        tags.LAMBDA_MAX: report.lambda_max,
        tags.SMOOTHNESS_RATIO: report.ratio,
        tags.ONE_ONE_NORM_ERROR: report.one_one_norm_relative_error,
        tags.LAMBDA_MAX_ERROR: report.lambda_max_relative_error,
        tags.PROBE_LOSS: report.loss,
        tags.PROBE_HVPS: float(report.num_hvps),
        tags.PROBE_SECONDS: report.seconds,
    }
    for name, block in report.smoothness.items():
        of = partial(tags.of_partition, partition=name)
        if report.secant is not None:
            scalars[of(tags.SECANT)] = report.secant[name] / d
        if report.noise is not None:
            scalars[of(tags.NOISE)] = report.noise.block_noise[name] / d
        if name == "global":
            continue
        scalars[of(tags.OPERATOR_NORM_LOWER)] = block.lower / d
        scalars[of(tags.OPERATOR_NORM_UPPER)] = block.operator_upper / d
        scalars[of(tags.ADVANTAGE_LOWER)] = report.advantage[name].lower
        scalars[of(tags.ADVANTAGE_UPPER)] = report.advantage[name].upper
        scalars[of(tags.STEP_ADVANTAGE)] = report.step_advantage[name]
        if name != "coordinate":
            scalars[of(tags.SMOOTHNESS_UPPER)] = block.upper / d
            scalars[of(tags.R_SQUARED)] = report.r_squared[name]
    if report.noise is not None:
        scalars[tags.NOISE_TRACE] = report.noise.trace
        scalars[tags.NOISE_SCALE] = report.noise.noise_scale
        scalars[tags.NOISE_TRACE_ERROR] = report.noise.trace_relative_error
    return scalars
