"""A live module seen as a pure function of its parameters on given batches."""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.functional.random import derive_seed
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.argument_checks import (
    check_callable,
    check_choice,
    check_positive,
    check_whole,
)
from lightning_linf.probe.batch_copy import clone_tensor, copy_batch
from lightning_linf.probe.batch_list import list_batches
from lightning_linf.probe.double_backward import (
    check_graph,
    gradients_of,
    lack_of_derivatives_named,
    make_embeddings_dense,
    twice_differentiable,
)
from lightning_linf.probe.fabric import unwrapped
from lightning_linf.probe.fully_shard import bypass_sharding, gather_sharded, reshard
from lightning_linf.probe.loss_check import check_loss
from lightning_linf.probe.loss_function import batch_weight, make_objective
from lightning_linf.probe.module_state import Isolation, untouched
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.train_only import require_no_loss_in_training
from lightning_linf.probe.trainer_state import TrainerState
from lightning_linf.probe.training_dtype import training_dtype
from lightning_linf.reparam import Reparameterization

Mode = Literal["eval", "train"]


class _Graph(NamedTuple):
    parameters: list[Tensor]  # leaves
    loss: Tensor  # ()
    gradients: tuple[Tensor, ...]  # of the loss, with a graph of their own


class _Mean(NamedTuple):
    rows: Tensor  # (r, d)
    loss: float


class Landscape:
    """The loss of a module as a function of its trainable parameters, on fixed batches.

    Use it as a context manager: inside, the module belongs to the probe; on leaving, everything is
    as it was, to the last bit (see :func:`~lightning_linf.probe.module_state.untouched`, and of the
    trainer :class:`~lightning_linf.probe.trainer_state.TrainerState`).

    The loss is the mean over batches (and ranks) weighted by the module's ``probe_weight(batch)``,
    by default the number of samples. Batches are not joined, so they may differ in shape.

    What is differentiated: parameters in float32 or wider whatever the training precision, without
    autocast, compiled modules eagerly, attention by the math kernel, embeddings with dense
    gradients; in ``64-true`` and its like new tensors have the dtype of the parameters.
    ``mode="eval"`` is the network as it predicts: dropout off, BatchNorm with its running
    statistics. ``mode="train"`` keeps the flags of training: dropout with masks that are the same
    at every evaluation (drawn from ``seed``), BatchNorm with the statistics of each batch. Buffers
    and all other state start every evaluation as they were on entering.

    Parameters sharded by ``fully_shard`` are gathered on entering, whatever its policies are; every
    rank then probes its own batches with whole ones, and vectors (d,) are whole, too.

    Memory: a copy of the module's parameters and buffers (two of sharded ones), the graph of the
    gradient on one batch, and a few vectors.

    Args:
        module: A LightningModule, or any module together with ``loss``; of one that Fabric has set
            up, the module inside it.
        batches: At least one: a list, or a loader that has a length, of which all are taken. They
            are moved to the module's device when used.
        loss: From module and batch to a scalar. Default: the module's ``probe_loss(batch)`` where
            it has one, else its ``training_step``.
        mode: "eval" or "train", see above.
        seed: Of all random numbers that the module draws while it is probed.
        parameters: Of the trainable parameters only these. Default: all.
        batch_indices: What ``training_step`` gets as ``batch_idx``. Default: 0, 1, ...
        memory_gib: What the vectors of one pass over several batches may take, in GiB. Several
            products per pass save forward passes; one batch needs no more, as its graph is kept.
        reduce: Sums a tensor over ranks and returns it; every rank must then make the same calls.
            Default: one rank.
        reparameterization: The map A of coordinates in which the landscape is seen: parameters
            theta = A phi, gradient A^T g, Hessian A^T H A, offsets in phi. A
            :class:`~lightning_linf.reparam.Reparameterization`, such as ``Rotation()``, is bound to
            the parameters of the landscape; a linear map of vectors (d,) is taken as it is.
            Default: theta itself.

    Raises:
        ValueError: If an argument has a wrong value, or ``reparameterization`` cannot be bound.
        ProbeError: If there is no batch, no usable parameter
            (:class:`~lightning_linf.probe.parameters.ParameterVector`) or loss
            (:func:`~lightning_linf.probe.loss_function.make_objective`), or, when evaluated, the
            loss is not a finite scalar or an operation in it has no second derivative.

    Example:
        >>> module = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> with Landscape(module, [x], loss=lambda m, x: m(x).square().mean()) as landscape:
        ...     landscape.hvp(torch.tensor([1.0, 0.0]))  # the Hessian is 2 x x^T
        tensor([2., 4.])
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any] | Iterable[Any],
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        mode: Mode = "eval",
        seed: int = 0,
        parameters: Collection[nn.Parameter] | None = None,
        batch_indices: Sequence[int] | None = None,
        memory_gib: float = 1.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
        reparameterization: Reparameterization | LinearMap | None = None,
    ) -> None:
        module = unwrapped("Landscape", module)
        check_choice("Landscape", "mode", mode, get_args(Mode))
        check_positive("Landscape", "memory_gib", memory_gib)
        check_whole("Landscape", "seed", seed)
        check_callable("Landscape", "loss", loss, "Give a function of module and batch.")
        check_callable("Landscape", "reduce", reduce)
        batches = list_batches("Landscape", "batches", batches)
        if not batches:
            raise ProbeError("Landscape: expected at least one batch, got none.")
        if batch_indices is not None and len(batch_indices) != len(batches):
            raise ValueError(
                f"Landscape: expected one of `batch_indices` for each of {len(batches)} batches, "
                f"got {len(batch_indices)}."
            )
        self.module = module
        self._chosen = parameters
        reshard(module)
        self.parameters = ParameterVector(module, parameters)
        self.num_hvps = 0
        self._objective = make_objective(module, loss)
        self._calls_training_step = loss is None and not hasattr(module, "probe_loss")
        self._batches = batches
        self._batch_indices = range(len(batches)) if batch_indices is None else batch_indices
        self.mode: Mode = mode
        self._seed = seed
        self._memory_gib = memory_gib
        self.reparameterization = reparameterization
        self._map = self._bound_map()
        self.ranks = Ranks(reduce, self.parameters.device)
        self._graph: _Graph | None = None
        self._loss: float | None = None
        self._stack = ExitStack()
        self._isolation: Isolation | None = None
        self._whole: dict[int, Tensor] = {}  # of sharded tensors, by the identity of these

    def __enter__(self) -> Self:
        self._loss, self._graph = None, None
        self.ranks.start()
        failure: Exception | None = None
        try:
            reshard(self.module)
            self.parameters = ParameterVector(self.module, self._chosen)
            self._map = self._bound_map()
            with ExitStack() as stack:
                self._isolation = stack.enter_context(
                    untouched(self.module, refuse_iterators=self._calls_training_step)
                )
                self._trainer_state = TrainerState(self.module, self._isolation.training_parts)
                device = self.parameters.device
                stack.enter_context(twice_differentiable(self.module, device))
                self._stack = stack.pop_all()
        except Exception as error:
            failure = error
        try:
            self.ranks.agree(failure)
            assert self._isolation is not None
            self._whole = self.ranks.together(partial(gather_sharded, self._isolation.slots))
        except BaseException:
            self._stack.close()
            raise
        finally:
            del failure  # its traceback holds this frame
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._graph = None
        self._isolation = None
        self._whole = {}
        try:
            if not self.ranks.all_know and (exc is None or isinstance(exc, Exception)):
                # The other ranks wait for this one, in a pass or here.
                self.ranks.agree(
                    exc, silent=True
                )  # silent: our own exception is on its way already
        finally:
            self._stack.close()

    @property
    def num_batches(self) -> int:
        """How many batches of this rank the loss is a mean over."""
        return len(self._batches)

    @property
    def probes_per_pass(self) -> int:
        """How many products :meth:`hvp` forms in one pass over the batches."""
        if len(self._batches) == 1:
            return 1
        # a vector, its product, and both again while they are joined
        bytes_per_probe = 4 * self.parameters.num_params * self.parameters.dtype.itemsize
        return max(1, int(self._memory_gib * 2**30 / bytes_per_probe))

    def check(self) -> str | None:
        """Try on the first batch whether the loss is a function and its derivatives are right.

        :func:`measure_geometry` does so at each call, a monitor at the first probe of a training.

        Returns:
            A remark, if the gradient is not that of the loss; None if all is well.

        Raises:
            ProbeError: See :func:`~lightning_linf.probe.loss_check.check_loss`, which says how.
        """

        def evaluate(vector: ParameterVector, offset: Tensor | None) -> tuple[list[Tensor], Tensor]:
            return self._evaluate(0, offset, vector)

        return self.ranks.together(lambda: check_loss(evaluate, self.parameters))

    def loss(self, offset: Tensor | None = None) -> float:
        """Mean loss over the batches, ``offset`` (d,) away from the present point."""
        if offset is not None:
            return self._pass(lambda index: self._loss_at(index, offset), rows=0).loss
        if self._loss is None:
            self.gradient()
        assert self._loss is not None
        return self._loss

    def gradient(self, offset: Tensor | None = None) -> Tensor:
        """Gradient of the mean loss (d,), ``offset`` (d,) away from the present point."""
        if offset is not None:
            return self._pass(lambda index: self._gradient_at(index, offset), rows=1).rows[0]
        mean = self._pass(self._gradient_here, rows=1)
        self._loss = mean.loss
        return mean.rows[0]

    def each_gradient(self, visit: Callable[[Tensor, float], object]) -> None:
        """Call ``visit`` with the gradient (d,) and the weight of each batch of this rank.

        Every rank must call this; an exception on one is an exception on all.
        """
        failure: Exception | None = None
        try:
            for index, batch in enumerate(self._batches):
                visit(self._gradient_here(index)[0][0], batch_weight(self.module, batch))
        except Exception as error:
            failure = error
        try:
            self.ranks.agree(failure)
        finally:
            del failure  # its traceback holds this frame

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with one vector (d,) or with several (c, d).

        Cost in gradients (forward + backward), for M batches: M (1 + 2c) a pass of c products, or
        2 each after a first 1 if M = 1. Source: double backward (Pearlmutter 1994).
        """
        dim = self.parameters.num_params
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != dim:
            raise ValueError(
                f"Landscape.hvp: expected `vectors` of shape ({dim},) or (c, {dim}), "
                f"got {tuple(vectors.shape)}."
            )
        rows = vectors.reshape(-1, dim)
        step = self.probes_per_pass
        products = [
            self._pass(partial(self._products_here, part), rows=len(part)).rows
            for part in (rows[first : first + step] for first in range(0, len(rows), step))
        ]
        self.num_hvps += len(rows)
        return torch.cat(products).reshape(vectors.shape)

    def first_half(self) -> float | None:
        """Share of the first of two halves of all batches in their weight; None if there is one.

        Halves alternate over batches and ranks. Every rank must call this.

        Raises:
            ProbeError: If a batch has no positive weight.
        """
        if self.ranks.is_alone and len(self._batches) == 1:
            return None
        weights, failure = [0.0, 0.0], None
        try:
            for index in range(len(self._batches)):
                weights[self._half(index)] += self._weight(index)
        except Exception as error:
            failure = error
        try:
            first, second = self.ranks.agree(failure, *weights)
        finally:
            del failure  # its traceback holds this frame
        return first / (first + second) if first > 0 and second > 0 else None

    def hvp_of_halves(self, vectors: Tensor, first_half: float) -> Tensor:
        """Multiply the Hessians of two halves of the batches with vectors (c, d). Shape: (2, c, d).

        They cost what :meth:`hvp` costs, whose products are their mean with the weights
        ``first_half``, from :meth:`first_half`, and 1 minus it.
        """
        step = max(1, self.probes_per_pass // 2)
        products = [
            self._products_of_halves(vectors[begin : begin + step])
            for begin in range(0, len(vectors), step)
        ]
        self.num_hvps += len(vectors)
        both = torch.cat(products, dim=1)
        both[0] /= first_half
        both[1] /= 1 - first_half
        return both

    def _products_of_halves(self, vectors: Tensor) -> Tensor:
        """Each half's part of the products of the mean loss. Shapes: (c, d) -> (2, c, d)."""
        count = len(vectors)

        def place(index: int) -> slice:
            return slice(count * self._half(index), count * (self._half(index) + 1))

        mean = self._pass(partial(self._products_here, vectors), rows=2 * count, place=place)
        return mean.rows.view(2, count, -1)

    def _half(self, index: int) -> int:
        return (self.ranks.rank + index) % 2

    def _pass(
        self,
        evaluate: Callable[[int], tuple[Tensor, float]],
        rows: int,
        place: Callable[[int], slice] = lambda index: slice(None),
    ) -> _Mean:
        """Weighted mean over batches and ranks of ``evaluate(index)``, rows (r, d) and loss.

        The rows of a batch are added to those of its ``place``.
        """
        vector = self.parameters
        failure: Exception | None = None
        weight, loss = 0.0, 0.0
        try:
            sums = torch.zeros(rows, vector.num_params, dtype=vector.dtype, device=vector.device)
            for index in range(len(self._batches)):
                share = self._weight(index)
                values, value = evaluate(index)
                sums[place(index)].add_(values, alpha=share)
                weight += share
                loss += share * value
        except Exception as error:  # raised once the other ranks know
            failure = error
        try:
            weight, loss = self.ranks.agree(failure, weight, loss)
        finally:
            del failure  # its traceback holds this frame, and with it the graph
        return _Mean(self.ranks.sum(sums).div_(weight), loss / weight)

    def _weight(self, index: int) -> float:
        if len(self._batches) == 1 and self.ranks.is_alone:
            return 1.0
        weight = batch_weight(self.module, self._batches[index])
        if not weight > 0:
            raise ProbeError(
                f"probe: expected batches of positive weight, got {weight} for batch {index}."
            )
        return weight

    def _evaluate(
        self, index: int, offset: Tensor | None = None, vector: ParameterVector | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Parameters, as leaves, and the loss of one batch with its graph; offset in theta."""
        evaluate = partial(self._evaluate_in, index, offset, vector or self.parameters)
        try:
            return evaluate(self.mode)
        except Exception as error:
            if self.mode == "eval" and self._isolation is not None:
                require_no_loss_in_training(error, self.module, partial(evaluate, "train"))
            raise

    def _evaluate_in(
        self, index: int, offset: Tensor | None, vector: ParameterVector, mode: Mode
    ) -> tuple[list[Tensor], Tensor]:
        if self._isolation is None:
            raise ProbeError("Landscape: expected to be used inside `with Landscape(...) as ...:`.")
        self._isolation.rewind()
        if self._whole:
            bypass_sharding(self.module)
        parameters = vector.substitute(self._isolation.slots, offset, self._whole)
        self._set_mode(mode)
        make_embeddings_dense(self.module)
        if vector.widen:
            for part in self.module.modules():
                if is_either(part, LightningModule):
                    part.__dict__["_dtype"] = vector.dtype  # what self.dtype says
        _seed_everything(derive_seed("landscape", self._seed, index), vector.device)
        dtype = vector.dtype if vector.widen else None
        # Copied before it is moved: an object may move its own tensors.
        batch = copy_batch(self._batches[index], partial(clone_tensor, dtype=dtype))
        batch = move_data_to_device(batch, vector.device)
        with self._trainer_state.unchanged(), training_dtype(self.module, vector.dtype):
            return parameters, self._objective(batch, self._batch_indices[index])

    def _graph_of(self, index: int) -> _Graph:
        if self._graph is not None:
            return self._graph
        parameters, loss = self._evaluate(index)
        gradients = gradients_of(loss, parameters, create_graph=True)
        check_graph(loss, gradients, self.parameters.originals)
        graph = _Graph(parameters, loss, gradients)
        if len(self._batches) == 1:
            self._graph = graph
        return graph

    def _loss_at(self, index: int, offset: Tensor) -> tuple[Tensor, float]:
        none = offset.new_zeros(0, self.parameters.num_params)
        return none, self._evaluate(index, self._mapped(offset))[1].item()

    def _gradient_at(self, index: int, offset: Tensor | None) -> tuple[Tensor, float]:
        parameters, loss = self._evaluate(index, self._mapped(offset))
        gradients = gradients_of(loss, parameters)
        return self._transposed(self.parameters.flatten(gradients))[None], loss.item()

    def _gradient_here(self, index: int) -> tuple[Tensor, float]:
        if len(self._batches) > 1:
            return self._gradient_at(index, None)
        graph = self._graph_of(index)  # kept for products
        gradient = self.parameters.flatten(graph.gradients).detach()
        return self._transposed(gradient)[None], graph.loss.item()

    def _products_here(self, vectors: Tensor, index: int) -> tuple[Tensor, float]:
        graph = self._graph_of(index)
        rows = [self._transposed(self._product(graph, vector)) for vector in vectors]
        return torch.stack(rows), graph.loss.item()

    def _product(self, graph: _Graph, vector: Tensor) -> Tensor:
        parts = self.parameters.unflatten(self._mapped(vector))
        pairs = [(g, v) for g, v in zip(graph.gradients, parts, strict=True) if g.requires_grad]
        if not pairs:  # the loss is linear
            return torch.zeros_like(vector)
        with lack_of_derivatives_named():
            products = torch.autograd.grad(
                [g for g, _ in pairs],
                graph.parameters,
                grad_outputs=[v.to(g.dtype) for g, v in pairs],
                retain_graph=True,
                materialize_grads=True,
            )
        return self.parameters.flatten(products)

    def _mapped(self, vector: Tensor | None) -> Any:
        return vector if vector is None or self._map is None else self._map.apply(vector)

    def _transposed(self, vector: Tensor) -> Tensor:
        return vector if self._map is None else self._map.apply_transpose(vector)

    def _bound_map(self) -> LinearMap | None:
        if isinstance(self.reparameterization, Reparameterization):
            shapes, names = self.parameters.shapes, self.parameters.names
            self.reparameterization.selects(names, len(names))  # refuses what matches none
            return self.reparameterization.bind(shapes, names)
        return self.reparameterization

    def _set_mode(self, mode: Mode) -> None:
        if mode == "eval":
            for part in self.module.modules():
                part.training = False
        elif not self.module.training:
            for part in self.module.modules():
                part.training = True


def _seed_everything(seed: int, device: torch.device) -> None:
    if device.type == "cpu" and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # torch.manual_seed would also seed a CUDA that starts later, and format the stack for that.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global state is what modules draw from
