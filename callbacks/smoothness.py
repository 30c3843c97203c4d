"""Log the smoothness of the loss along l-infinity and along l2."""

import time
from collections import deque
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from typing_extensions import override

from lightning_linf import tags
from lightning_linf.callbacks._monitor import GeometryMonitor, OnError
from lightning_linf.callbacks._progress import probe_progress
from lightning_linf.functional.random import derive_seed
from lightning_linf.probe import Landscape, ProbeError, measure_smoothness
from lightning_linf.probe.landscape import Mode

_MAX_LANCZOS_HVPS = 32


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
    """Log the (1,1)-norm of the Hessian beside its largest absolute eigenvalue, while training.

    Probes in ``on_train_batch_end``, right after an optimizer step, on the training batches it has
    just used (as they came to ``training_step``), over the parameters of the optimizers, with
    Hessian-vector products of the loss that ``training_step`` (or the module's
    ``probe_loss(batch)``) returns. Training is not changed in any bit. Cost: about 1 + 2 gradients
    for each of ``num_probes`` products and up to 32 more for the eigenvalue, times ``num_batches``.
    Under DDP every rank probes its own batches and each product is averaged over ranks: one
    reduction of d numbers per product.

    Logged under ``geometry/``: ``one_one_norm_per_param`` and ``lambda_max``, both in loss per
    parameter squared and comparable; ``smoothness_ratio``, the second over the first;
    ``one_one_norm_relative_error`` (standard error) and ``lambda_max_relative_error`` (residual);
    ``probe_loss``, ``probe_hvps``, ``probe_seconds``; and one record with each parameter tensor's
    share of the (1,1)-norm. ``history`` holds everything in memory and in checkpoints: one dict per
    measurement with ``step``, the scalars, ``tensor_names`` and ``per_tensor``.

    Args:
        every_n_steps: Measure at optimizer steps divisible by this, counted from 1, which are the
            steps at which Lightning logs when ``log_every_n_steps`` is the same.
        num_probes: Cauchy probes for the (1,1)-norm, at least 4; 16 give a relative error of about
            0.1, four times as many half of it.
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
        num_probes: int = 16,
        num_batches: int = 1,
        max_overhead: float | None = None,
        mode: Mode = "eval",
        seed: int = 0,
        on_error: OnError = "warn",
    ) -> None:
        super().__init__(every_n_steps, on_error)
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
        self.num_probes = num_probes
        self.num_batches = num_batches
        self.max_overhead = max_overhead
        self.mode: Mode = mode
        self.seed = seed
        self._batches: deque[_KeptBatch] = deque(maxlen=num_batches)
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

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._batches.clear()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._batches.clear()

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
        most_hvps = self.num_probes + _MAX_LANCZOS_HVPS
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        with (
            probe_progress(trainer, "Probing", most_hvps) as advance,
            Landscape(
                pl_module,
                [kept.batch() for kept in self._batches],
                batch_indices=[kept.batch_idx for kept in self._batches],
                parameters=[p for group in groups for p in group["params"]],
                mode=self.mode,
                seed=derive_seed("masks", self.seed),
                reduce=reduce if trainer.world_size > 1 else None,
            ) as landscape,
        ):
            result = measure_smoothness(
                landscape,
                num_probes=self.num_probes,
                max_lanczos_hvps=_MAX_LANCZOS_HVPS,
                seed=self.seed,
                on_hvps=advance,
            )
        scalars = {
            tags.ONE_ONE_NORM_PER_PARAM: result.one_one_norm_per_param,
            tags.LAMBDA_MAX: result.lambda_max,
            tags.SMOOTHNESS_RATIO: result.ratio,
            tags.ONE_ONE_NORM_ERROR: result.one_one_norm_relative_error,
            tags.LAMBDA_MAX_ERROR: result.lambda_max_relative_error,
            tags.PROBE_LOSS: result.loss,
            tags.PROBE_HVPS: float(result.num_hvps),
            tags.PROBE_SECONDS: result.seconds,
        }
        shares = torch.tensor(list(result.tensor_shares.values()))
        self.record(trainer, scalars, {"one_one_norm_share": shares}, list(result.tensor_shares))

    @override
    def state_dict(self) -> dict[str, Any]:
        seconds = {"probe": self._probe_seconds, "train": self._train_seconds}
        return {**super().state_dict(), "seconds": seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._probe_seconds = state_dict["seconds"]["probe"]
        self._train_seconds = state_dict["seconds"]["train"]
