"""The loss landscape at a point of training, on one device or many, in the memory that there is."""

import gc
import traceback
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_linf.callbacks._kept_batch import KeptBatch
from lightning_linf.callbacks._memory_plan import MemoryPlan
from lightning_linf.callbacks._trainer import sum_over_ranks
from lightning_linf.distributed.heartbeat import phase
from lightning_linf.distributed.ranks import Ranks, is_out_of_memory
from lightning_linf.errors import RefusedLossError
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.functional.offload import Offload
from lightning_linf.functional.random import derive_seed
from lightning_linf.probe import Landscape, ProbeError, ProbeMemory
from lightning_linf.probe.batch_copy import split_batch
from lightning_linf.probe.functional_module import Mode

_T = TypeVar("_T")
_MOST_PARTS = 16  # of a batch; each attempt that fails costs the time until it fails
_SAME_LOSS = 1e-4  # relative; float32 sums in another order differ by less


class TrainingLandscape:
    """Make the landscape of a trainer's module, of smaller parts where memory is short.

    Arguments are those of :class:`~lightning_linf.probe.Landscape`; ``caller`` is the name of the
    monitor, and ``warn_once`` takes a kind of warning and its text.
    """

    def __init__(
        self,
        caller: str,
        mode: Mode,
        seed: int,
        loss: Callable[[Any, Any], Tensor] | None,
        matmul_precision: MatmulPrecision,
        offload: Offload | None,
        warn_once: Callable[[str, str], object],
        whole_parameters: bool = False,
    ) -> None:
        self._caller = caller
        self._num_parts = 1  # of each batch: more than one where whole ones take too much memory
        self._is_planned = False
        self._is_checked = False
        self._remark: str | None = None  # of the check
        self._refusal: str | None = None  # by the check
        self._mode: Mode = mode
        self._loss = loss
        self._matmul_precision: MatmulPrecision = matmul_precision
        self._offload: Offload | None = offload
        self._seed = derive_seed("masks", seed)
        self._warn_once = warn_once
        self._whole_parameters = whole_parameters

    def start_training(self) -> None:
        """Check the loss again at the next visit, and what a probe takes of the memory."""
        self._is_checked, self._refusal, self._is_planned = False, None, False

    def visit(
        self,
        trainer: Trainer,
        module: LightningModule,
        batches: Collection[KeptBatch],
        parameters: Collection[nn.Parameter],
        probe: Callable[[Landscape], _T],
        memory_of: Callable[[Landscape], ProbeMemory],
        coordinates: LinearMap | None = None,
    ) -> _T:
        """Call ``probe`` with a landscape, again with smaller parts if memory runs out.

        The first visit of a training begins with the parts that ``memory_of`` says will fit.

        The loss is then the mean over parts, weighted by the number of samples, which must be the
        loss of the whole; so not with ``mode="train"``, where the samples of a batch may mix.

        A loss that was refused is not evaluated again in this training: each time may change it.

        Raises:
            ProbeError: If the loss of the parts is another.
            RefusedLossError: What the check of the loss raises.
            Exception: What ``probe`` raises, if smaller parts are of no help.
        """
        ranks = Ranks(sum_over_ranks(trainer), module.device)
        make = partial(self._make, trainer, module, batches, parameters, coordinates)
        if not self._is_checked:
            ranks.together(self._refuse_again)
        if not self._is_planned:
            plan = MemoryPlan(self._caller, make, memory_of, ranks, self._warn_once)
            most = _MOST_PARTS if self._mode == "eval" else 1
            self._num_parts = max(self._num_parts, plan.num_parts(self._offload, most))
            self._is_planned = True
        num_parts = planned = self._num_parts
        while True:
            try:
                parts = ranks.together(partial(make, num_parts, self._offload))
                if num_parts > 1:
                    whole = ranks.together(partial(make, 1, self._offload))
                    _require_same_loss(whole, parts)
                if not self._is_checked:
                    self._check(parts)
                result = probe(parts)
            except Exception as error:
                may_help = self._mode == "eval" and num_parts < _MOST_PARTS
                if not is_out_of_memory(error) or not may_help:
                    raise
                _release_frames(error)
            else:
                self._num_parts = num_parts
                if self._remark is not None:
                    self._warn_once("detached", self._remark)
                if num_parts > planned:
                    self._warn_once(
                        f"parts {num_parts}",
                        "a probe ran out of memory, so from now on it takes its batches in "
                        f"{num_parts} parts. The numbers are the same.",
                    )
                return result
            num_parts *= 2
            gc.collect()
            torch.cuda.empty_cache()

    def _refuse_again(self) -> None:
        if self._refusal is not None:
            raise RefusedLossError(self._refusal)

    def _check(self, landscape: Landscape) -> None:
        try:
            with landscape, phase("check of the loss"):
                self._remark = landscape.check()
        except RefusedLossError as error:
            self._refusal = str(error)
            raise
        self._is_checked = True

    def _make(
        self,
        trainer: Trainer,
        module: LightningModule,
        batches: Collection[KeptBatch],
        parameters: Collection[nn.Parameter],
        coordinates: LinearMap | None,
        num_parts: int,
        offload: Offload | None,
    ) -> Landscape:
        numbered = [
            (part, kept.batch_idx)
            for kept in batches
            for part in split_batch(kept.batch(), num_parts)
        ]
        return Landscape(
            module,
            [part for part, _ in numbered],
            batch_indices=[index for _, index in numbered],
            parameters=parameters,
            loss=self._loss,
            mode=self._mode,
            seed=self._seed,
            reduce=sum_over_ranks(trainer),
            reparameterization=coordinates,
            matmul_precision=self._matmul_precision,
            offload=offload,
            whole_parameters=self._whole_parameters,
        )


def _require_same_loss(whole: Landscape, parts: Landscape) -> None:
    losses = []
    for landscape in (whole, parts):
        with landscape:
            vector = landscape.parameters
            losses.append(landscape.loss(vector.zeros()))  # without the gradient's graph
    if abs(losses[0] - losses[1]) > _SAME_LOSS * abs(losses[0]):
        raise ProbeError(
            "probe: too little memory, and expected a loss that is the mean over samples, so that "
            f"it can be probed in parts, got {losses[0]:g} of the whole batch and {losses[1]:g} of "
            f"{parts.num_batches} parts. Let probe_loss(batch) take fewer samples and "
            "probe_weight(batch) count them."
        )


def _release_frames(error: BaseException) -> None:
    """Free what the frames of an error hold, such as a graph."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
