"""The loss of a live module by forward passes alone, run as training runs it, without a trace."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.distributed.shards import is_sharded, local
from lightning_linf.errors import ProbeError, RestoreError
from lightning_linf.functional.random import derive_seed
from lightning_linf.probe.batch_copy import clone_tensor, copy_batch
from lightning_linf.probe.fingerprint import fingerprint
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.loss_function import (
    batch_weight,
    calls_training_step,
    find_output,
    scalar_of,
)
from lightning_linf.probe.module_state import ModuleState, untouched
from lightning_linf.probe.random_state import seed_everything
from lightning_linf.probe.saved_tensors import SavedTensors
from lightning_linf.probe.trainer_state import TrainerState

# Calls a function of a batch and its number within the forward pass of whatever wraps the module.
Run = Callable[[Callable[[Any, int], Any], Any, int], Any]


class ForwardLoss:
    """Mean loss over batches and ranks of a module whose parameters somebody moves in place.

    The module itself is run, without a graph: compiled, sharded and in the precision of training,
    with its own kernels. Every evaluation starts with the same random state, buffers and other
    state, and on leaving all is as it was on entering, but for the moved parameters.

    Frozen parameters, which ``training_step`` might change in place (a teacher), are copied, too,
    unless there are more of them than of moved ones (a base under adapters): then it is checked
    that they have not changed. That moved ones have not is checked, too.

    Args:
        module: What has the loss; under a wrapper, the module inside it.
        batches: Of this rank.
        batch_indices: What ``training_step`` gets as ``batch_idx``.
        moved: Parameters that are moved between evaluations.
        loss: From module and batch to the loss, or None, as for
            :class:`~lightning_linf.probe.Landscape`.
        mode: "eval" or "train", as there.
        seed: Of the random numbers that the module draws.
        ranks: That evaluate together.
        run: Calls a function of batch and index as training calls ``training_step``.
        is_wrapped: As for :class:`~lightning_linf.probe.trainer_state.TrainerState`.

    Raises:
        ProbeError: If there is no loss that can be evaluated again.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        batch_indices: Sequence[int],
        *,
        moved: Collection[nn.Parameter],
        loss: Callable[[Any, Any], Tensor] | None,
        mode: Mode,
        seed: int,
        ranks: Ranks,
        run: Run,
        is_wrapped: bool = False,
    ) -> None:
        self.losses: list[list[float]] = []
        """Of each evaluation so far, those of the batches of this rank that have a weight."""
        self.weights: list[float] = []
        self.resolution = 0.0
        """Relative rounding error of a loss, from its dtype."""
        self._module, self._mode, self._seed = module, mode, seed
        self._batches, self._indices = batches, batch_indices
        self._moved = moved
        self._ranks, self._run, self._is_wrapped = ranks, run, is_wrapped
        self._output, self._source = find_output(module, loss)
        self._calls_training_step = calls_training_step(module, loss)
        self._takes_gradients = False
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            state = exits.enter_context(
                untouched(self._module, refuse_iterators=self._calls_training_step)
            )
            self._trainer_state = TrainerState(
                self._module,
                state.training_parts,
                is_wrapped=self._is_wrapped,
                keeps_parameters=True,
            )
            self._state = state
            self._saved, self._watched = _save_fixed(
                state, self._moved, is_wrapped=self._is_wrapped
            )
            self._places = [*_places(self._watched), *_places(self._moved)]
            exits.callback(self._restore)
            self._print = fingerprint(self._watched)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()

    def mean(
        self,
        prepare: Callable[[], object],
        *,
        is_unchanged: Callable[[], bool] = lambda: True,
        is_kept: bool = True,
    ) -> float:
        """Call ``prepare``, which may move parameters, and evaluate the loss of all batches.

        ``is_unchanged`` says afterwards whether they are as it left them. ``is_kept`` says whether
        somebody can put them back if the loss changes them; if not, such a loss is a RestoreError
        instead of a ProbeError.

        A failure on one rank is a failure on all, unless it happens where the others wait within
        the forward pass of a sharded module.
        """

        def evaluate() -> tuple[float, float]:
            prepare()
            batches = enumerate(self._batches)
            weighted = [(self._weight(batch), index) for index, batch in batches]
            pairs = [(w, self._evaluate(index, is_kept)) for w, index in weighted]
            if not is_unchanged():
                self._refuse_changes(is_kept)
            counted = [(w, loss) for w, loss in pairs if w > 0]
            self.weights = [w for w, _ in counted]
            self.losses.append([loss for _, loss in counted])
            return sum(w * loss for w, loss in counted), sum(self.weights)

        total, weight = self._ranks.add(evaluate)
        if not weight > 0:
            raise ProbeError(
                "probe: expected batches of positive weight on some rank, got none. Look at "
                "probe_weight(batch)."
            )
        return total / weight

    def _weight(self, batch: Any) -> float:
        """Weigh a batch; 0 of a rank without a loss, as in a pipeline, is left out of the mean."""
        if len(self._batches) == 1 and self._ranks.is_alone:
            return 1.0
        weight = batch_weight(self._module, batch)
        if not 0 <= weight < math.inf:
            raise ProbeError(f"probe: expected a batch of finite weight >= 0, got {weight}.")
        return weight

    def _evaluate(self, index: int, is_kept: bool) -> float:
        if not self._takes_gradients:
            try:
                return self._evaluate_under(torch.no_grad(), index, is_kept)
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
            self._takes_gradients = True  # on its way, as a gradient penalty does
        return self._evaluate_under(torch.enable_grad(), index, is_kept)

    def _evaluate_under(
        self, grad_mode: AbstractContextManager[object], index: int, is_kept: bool
    ) -> float:
        self._state.rewind()
        self._restore()
        for part in self._module.modules():
            if self._mode == "eval":
                part.training = False
        device = next(p.device for p in self._moved)
        seed_everything(derive_seed("landscape", self._seed, index), device)
        batch = copy_batch(self._batches[index], partial(clone_tensor, dtype=None))
        batch = move_data_to_device(batch, getattr(self._module, "device", device))
        versions = [p._version for p in self._moved]
        try:
            with self._trainer_state.unchanged(), grad_mode:
                output = self._run(self._output, batch, self._indices[index])
        finally:
            has_other_memory = _put_back(self._places)
            is_changed = versions != [p._version for p in self._moved] and not self._is_wrapped
        if has_other_memory or is_changed:
            self._refuse_changes(is_kept or not is_changed)
        self._require_fixed()
        loss = scalar_of(output, self._source).detach()
        loss = loss.full_tensor() if is_sharded(loss) else loss
        self.resolution = torch.finfo(loss.dtype).eps
        return loss.item()

    def _restore(self) -> None:
        if failures := self._saved.restore():
            raise RestoreError(
                "probe: expected to put buffers back as they were, but could not restore "
                f"{'; '.join(failures)}. Define probe_loss(batch) that does not change them."
            )

    def _refuse_changes(self, is_kept: bool) -> None:
        error = ProbeError if is_kept else RestoreError
        raise error(
            "probe: expected a loss that leaves parameters as they are, but evaluating it changed "
            "some in place. Define probe_loss(batch) that returns the loss and changes nothing."
        )

    def _require_fixed(self) -> None:
        if fingerprint(self._watched) != self._print:
            raise RestoreError(
                "probe: expected a loss that leaves frozen parameters as they are, but evaluating "
                "it changed some in place, and there are too many of them to keep copies. Define "
                "probe_loss(batch) that returns the loss and changes nothing."
            )


def _save_fixed(
    state: ModuleState, moved: Collection[nn.Parameter], *, is_wrapped: bool
) -> tuple[SavedTensors, list[nn.Parameter]]:
    """Copy buffers, and parameters that are not moved or else list these."""
    places = sorted(_place(p) for p in moved)
    starts = [start for start, _ in places]
    ends = list(accumulate((end for _, end in places), max))

    def is_moved(tensor: Tensor) -> bool:  # or is memory of which moved ones are parts
        start, end = _place(tensor)
        before = bisect_left(starts, end)
        return before > 0 and ends[before - 1] > start

    fixed = {id(t): t for _, _, t in state.places}
    fixed = {key: t for key, t in fixed.items() if not is_moved(t)}
    frozen = {key: t for key, t in fixed.items() if isinstance(t, nn.Parameter)}
    names = {id(t): str(key) for _, key, t in state.places}
    watched: list[nn.Parameter] = []
    if sum(map(_num_bytes, frozen.values())) > sum(map(_num_bytes, moved)):
        watched = list(frozen.values())
        fixed = {key: t for key, t in fixed.items() if key not in frozen}
    saved = SavedTensors()
    # A tensor itself if it can be: evaluating the loss may give it other memory (`p.data = ...`).
    parts = {k: local(t.detach()) if is_wrapped or is_sharded(t) else t for k, t in fixed.items()}
    saved.add((names[key], part) for key, part in parts.items())
    return saved, watched


def _places(parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Give parameters with the memory that they have; those of wrappers and shards come and go."""
    pairs = ((p, p.data) for p in parameters)
    return [(p, data) for p, data in pairs if type(data) is Tensor]


def _put_back(places: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Give parameters their memory back, and say whether any had other memory."""
    has_other = False
    for parameter, data in places:
        if parameter.data_ptr() != data.data_ptr() or parameter.shape != data.shape:
            parameter.data = data
            has_other = True
    return has_other


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where the memory of this rank's part of a tensor starts and ends."""
    part = local(tensor.detach())
    return part.data_ptr(), part.data_ptr() + part.nbytes


def _num_bytes(tensor: Tensor) -> int:
    return local(tensor).nbytes
