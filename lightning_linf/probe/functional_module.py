"""A module run as a function of its parameters, and left as it was."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_linf.distributed.ranks import Ranks, is_out_of_memory
from lightning_linf.distributed.shards import is_sharded
from lightning_linf.errors import ProbeError, RestoreError
from lightning_linf.functional.random import derive_seed
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.batch_copy import clone_tensor, copy_batch
from lightning_linf.probe.data_ranks import DataRanks
from lightning_linf.probe.double_backward import make_embeddings_dense, twice_differentiable
from lightning_linf.probe.loss_function import (
    calls_training_step,
    find_loss_function,
    require_no_loss_in_training,
)
from lightning_linf.probe.module_state import ModuleState, untouched
from lightning_linf.probe.parallel_modules import (
    batch_key,
    bypass_parallelism,
    gather_sharded,
    has_sharded,
    is_tensor_parallel,
    mesh_device,
    reshard,
)
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.random_state import seed_everything
from lightning_linf.probe.sharded_parameters import ShardedParameters
from lightning_linf.probe.trainer_state import TrainerState
from lightning_linf.probe.training_dtype import training_dtype

Mode = Literal["eval", "train"]


class FunctionalModule:
    """The loss of a module on each of some batches, as a function of its trainable parameters.

    Between :meth:`enter` and :meth:`leave` its places for parameters and buffers hold copies, and
    everything else is put back to what it was before each evaluation, and in the end.

    The arguments are those of :class:`~lightning_linf.probe.Landscape`; ``chosen`` are its
    ``parameters``.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        batch_indices: Sequence[int],
        loss: Callable[[nn.Module, Any], Tensor] | None,
        mode: Mode,
        seed: int,
        chosen: Collection[nn.Parameter] | None,
        whole_parameters: bool = True,
    ) -> None:
        self.module = module
        self.batches = batches
        self.mode: Mode = mode
        self._batch_indices = batch_indices
        self._seed = seed
        self._chosen = chosen
        self._whole_parameters = whole_parameters
        reshard(module)
        self.has_sharded = has_sharded(module)
        self.is_tensor_parallel = is_tensor_parallel(module)
        self.parameters = ParameterVector(module, chosen)
        self._loss_function = find_loss_function(module, loss)
        self._calls_training_step = calls_training_step(module, loss)
        self._exits = ExitStack()
        self._state: ModuleState | None = None
        self._whole: dict[int, Tensor] = {}  # of sharded tensors, by the identity of these
        self.sharded: ShardedParameters | None = None
        """What stands for parameters that are not whole, while vectors are shards."""
        self.data_ranks: DataRanks | None = None
        """Which batches other ranks have, if the module is sharded."""

    def enter(self) -> None:
        """Keep the state of the module, and set up how it is run."""
        reshard(self.module)
        self.parameters = ParameterVector(self.module, self._chosen)
        with ExitStack() as exits:
            state = exits.enter_context(
                untouched(self.module, refuse_iterators=self._calls_training_step)
            )
            self._trainer_state = TrainerState(self.module, state.training_parts)
            exits.enter_context(twice_differentiable(self.module, self.parameters.device))
            self._state, self._exits = state, exits.pop_all()

    def share(self, ranks: Ranks) -> None:
        """Take this rank's part in a sharded module; all ranks must call it, once entered."""
        assert self._state is not None
        if not self.has_sharded:
            return
        key = batch_key(self.module, ranks.rank)
        self.data_ranks = DataRanks.agree(ranks, len(self.batches), key)
        places = self._state.places
        if not self._whole_parameters:
            self.sharded = ShardedParameters(
                self.parameters, places, ranks, mesh_device(self.module)
            )
            gathered = self.sharded.gathered
            places = [place for place in places if id(place[2]) not in gathered]
            self._exits.enter_context(self.sharded.wholes.kept_out_of_graphs())
        self._whole = gather_sharded(places)

    @property
    def num_passes(self) -> int:
        """How often the module is run to run it on all batches, the same on all sharded ranks."""
        return len(self.batches) if self.data_ranks is None else self.data_ranks.num_passes

    @property
    def divides_vectors(self) -> bool:
        """Whether vectors are shards, once all ranks have entered."""
        return self.has_sharded and not self._whole_parameters

    @property
    def rank(self) -> int:
        """Number of this rank among those that share the module."""
        return 0 if self.data_ranks is None else self.data_ranks.rank

    @property
    def is_first_with_its_batches(self) -> bool:
        """Whether what this rank knows of its batches counts, or another one has the same."""
        return self.data_ranks is None or self.data_ranks.is_first

    @property
    def kept_bytes(self) -> int:
        """What is kept of sharded tensors, beside the copies made of it."""
        stretches = 0 if self.sharded is None else self.sharded.nbytes(self.parameters)
        return stretches + sum(tensor.nbytes for tensor in self._whole.values())

    def free_copies(self) -> None:
        """Take the copies of the last evaluation out of the module, which is not run any more."""
        assert self._state is not None
        if self.sharded is not None:
            self.sharded.wholes.forget()
        self._state.rewind()

    def leave(self) -> None:
        """Put everything back; what cannot be is a RestoreError."""
        self._state, self._whole, self.sharded, self.data_ranks = None, {}, None, None
        self._exits.close()

    def evaluate(
        self,
        index: int,
        offset: Tensor | None = None,
        vector: ParameterVector | None = None,
        under: AbstractContextManager[object] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Evaluate the loss of the batch ``index``, at the parameters plus ``offset`` (d,).

        ``vector`` may be ``parameters`` in a wider dtype. ``under`` is entered, again and again,
        for all that makes tensors on the way to the loss. Returns the parameters, as leaves, and
        the loss, with its graph.
        """
        under = under or nullcontext()
        evaluate = partial(self._evaluate, index, offset, vector or self.parameters, under)
        try:
            return evaluate(self.mode)
        except Exception as error:
            if self.has_sharded:
                self._explain(error)
            # While parameters are gathered at use, this rank must not run the module more often.
            if self.mode == "eval" and self._state is not None and self.sharded is None:
                require_no_loss_in_training(error, self.module, partial(evaluate, "train"))
            raise

    def loss_in_parallel(self, index: int) -> float:
        """Evaluate the loss of a batch as training does, by shards and the hooks that join them."""
        assert self._state is not None
        self._state.rewind()
        self._set_mode(self.mode)
        batch = move_data_to_device(
            copy_batch(self.batches[index], clone_tensor), self.parameters.device
        )
        with self._trainer_state.unchanged():
            loss = self._loss_function(batch, self._batch_indices[index]).detach()
        reshard(self.module)
        return float(loss.full_tensor() if is_sharded(loss) else loss)

    def _evaluate(
        self,
        index: int,
        offset: Tensor | None,
        vector: ParameterVector,
        under: AbstractContextManager[object],
        mode: Mode,
    ) -> tuple[list[Tensor], Tensor]:
        if self._state is None:
            raise ProbeError("Landscape: expected to be used inside `with Landscape(...) as ...:`.")
        self._state.rewind()
        if self.has_sharded:
            bypass_parallelism(self.module)
        substitute = vector.substitute
        if self.sharded is not None:
            self.sharded.wholes.forget()
            substitute = partial(self.sharded.substitute, vector)
        with under:
            parameters = substitute(self._state.places, offset, self._whole)
        self._set_mode(mode)
        make_embeddings_dense(self.module)
        if vector.widen:
            for part in self.module.modules():
                if is_either(part, LightningModule):
                    part.__dict__["_dtype"] = vector.dtype  # what self.dtype says
        seed_everything(derive_seed("landscape", self._seed, index), vector.device)
        dtype = vector.dtype if vector.widen else None
        # Copied before it is moved: an object may move its own tensors.
        with under:
            batch = copy_batch(self.batches[index], partial(_copy_input, dtype=dtype))
            batch = move_data_to_device(batch, vector.device)
        with self._trainer_state.unchanged(), training_dtype(self.module, vector.dtype), under:
            return parameters, self._loss_function(batch, self._batch_indices[index])

    def _explain(self, error: Exception) -> None:
        """Say what may be wrong where a module that is split among ranks runs as on one device."""
        is_plain = isinstance(error, (RuntimeError, AttributeError, TypeError, ValueError))
        if not is_plain or isinstance(error, (ProbeError, RestoreError)):
            return
        if is_out_of_memory(error) or not self.is_tensor_parallel:
            return
        raise ProbeError(
            "probe: expected a module that runs with whole parameters as on one device, once the "
            f"hooks of tensor parallelism are set aside, but {type(error).__name__}: {error} Code "
            "that counts on shards (heads divided by the number of ranks, to_local()) must take "
            "sizes from its inputs, such as view(batch, length, -1, head_dim), or stand outside "
            "of probe_loss(batch)."
        ) from error

    def _set_mode(self, mode: Mode) -> None:
        if mode == "eval" or not self.module.training:
            for part in self.module.modules():
                part.training = mode == "train"


def _copy_input(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Copy a tensor of a batch, whole if it is sharded as the activations of tensor parallelism."""
    return clone_tensor(tensor.full_tensor() if is_sharded(tensor) else tensor, dtype)
