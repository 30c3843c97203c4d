"""A live module seen as a pure function of its parameters on given batches."""

import random
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_linf.functional.random import derive_seed
from lightning_linf.probe.errors import ProbeError
from lightning_linf.probe.isolation import Isolation, untouched
from lightning_linf.probe.kernels import check_graph, twice_differentiable
from lightning_linf.probe.objective import batch_weight, copy_batch, make_objective
from lightning_linf.probe.parameters import ParameterVector

Mode = Literal["eval", "train"]


class _Graph(NamedTuple):
    parameters: list[Tensor]  # leaves
    loss: Tensor  # ()
    gradients: tuple[Tensor, ...]  # of the loss, with a graph of their own


class Landscape:
    """The loss of a module as a function of its trainable parameters, on fixed batches.

    Use it as a context manager: inside, the module belongs to the probe; on leaving, everything is
    as it was, to the last bit (see :func:`~lightning_linf.probe.isolation.untouched`).

    The loss is the mean over batches (and ranks) weighted by the module's ``probe_weight(batch)``,
    by default the number of samples. Batches are not joined, so they may differ in shape.

    What is differentiated: parameters in float32 or wider whatever the training precision, without
    autocast, compiled modules eagerly, attention by the math kernel. ``mode="eval"`` is the network
    as it predicts: dropout off, BatchNorm with its running statistics. ``mode="train"`` keeps the
    flags of training: dropout with masks that are the same at every evaluation (drawn from
    ``seed``), BatchNorm with the statistics of each batch. Buffers and all other state start every
    evaluation as they were on entering.

    Memory: a copy of the module's parameters and buffers, the graph of the gradient on one batch,
    and a few vectors.

    Args:
        module: A LightningModule, or any module together with ``loss``.
        batches: At least one. They are moved to the module's device when used.
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

    Raises:
        ValueError: If an argument has a wrong value.
        ProbeError: If there is no batch, no usable parameter
            (:class:`~lightning_linf.probe.parameters.ParameterVector`) or loss
            (:func:`~lightning_linf.probe.objective.make_objective`), or, when evaluated, the loss
            is not a finite scalar or an operation in it has no second derivative.

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
        batches: Sequence[Any],
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        mode: Mode = "eval",
        seed: int = 0,
        parameters: Collection[nn.Parameter] | None = None,
        batch_indices: Sequence[int] | None = None,
        memory_gib: float = 1.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if mode not in ("eval", "train"):
            raise ValueError(f'Landscape: expected `mode` "eval" or "train", got {mode!r}.')
        if not memory_gib > 0:
            raise ValueError(f"Landscape: expected `memory_gib` > 0, got {memory_gib}.")
        if not batches:
            raise ProbeError("Landscape: expected at least one batch, got none.")
        if batch_indices is not None and len(batch_indices) != len(batches):
            raise ValueError(
                f"Landscape: expected one of `batch_indices` for each of {len(batches)} batches, "
                f"got {len(batch_indices)}."
            )
        self.module = module
        self.parameters = ParameterVector(module, parameters)
        self.num_hvps = 0
        self._chosen = parameters
        self._objective = make_objective(module, loss)
        self._calls_training_step = loss is None and not hasattr(module, "probe_loss")
        self._batches = batches
        self._batch_indices = range(len(batches)) if batch_indices is None else batch_indices
        self._mode = mode
        self._seed = seed
        self._memory_gib = memory_gib
        self._reduce = reduce
        self._graph: _Graph | None = None
        self._loss: float | None = None
        self._stack = ExitStack()
        self._isolation: Isolation | None = None
        self._all_know = False  # of a failure on this or another rank

    def __enter__(self) -> Self:
        self._loss, self._graph, self._all_know = None, None, False
        failure: Exception | None = None
        try:
            self.parameters = ParameterVector(self.module, self._chosen)
            with ExitStack() as stack:
                self._isolation = stack.enter_context(
                    untouched(self.module, refuse_iterators=self._calls_training_step)
                )
                device = self.parameters.device
                stack.enter_context(twice_differentiable(self.module, device))
                self._stack = stack.pop_all()
        except Exception as error:
            failure = error
        try:
            self._agree(failure)
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
        try:
            if not self._all_know and (exc is None or isinstance(exc, Exception)):
                # The other ranks wait for this one, in a pass or here.
                self._agree(exc, silent=True)  # silent: our own exception is on its way already
        finally:
            self._stack.close()

    @property
    def probes_per_pass(self) -> int:
        """How many products :meth:`hvp` forms in one pass over the batches."""
        if len(self._batches) == 1:
            return 1
        # a vector, its product, and both again while they are joined
        bytes_per_probe = 4 * self.parameters.num_params * self.parameters.dtype.itemsize
        return max(1, int(self._memory_gib * 2**30 / bytes_per_probe))

    def loss(self) -> float:
        """Mean loss over the batches."""
        if self._loss is None:
            self.gradient()
        assert self._loss is not None
        return self._loss

    def gradient(self) -> Tensor:
        """Gradient of the mean loss, parameters in the order of ``parameters.names``. (d,)."""
        return self._pass(lambda graph: self.parameters.flatten(graph.gradients)[None], rows=1)[0]

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
            self._pass(partial(self._products, part), rows=len(part))
            for part in (rows[first : first + step] for first in range(0, len(rows), step))
        ]
        self.num_hvps += len(rows)
        return torch.cat(products).reshape(vectors.shape)

    def _pass(self, evaluate: Callable[[_Graph], Tensor], rows: int) -> Tensor:
        """Weighted mean over batches and ranks of ``evaluate``, of shape (rows, d)."""
        vector = self.parameters
        failure: Exception | None = None
        weight, loss = 0.0, 0.0
        try:
            sums = torch.zeros(rows, vector.num_params, dtype=vector.dtype, device=vector.device)
            for index in range(len(self._batches)):
                share = self._weight(index)
                graph = self._graph_of(index)
                sums.add_(evaluate(graph), alpha=share)
                weight += share
                loss += share * graph.loss.item()
        except Exception as error:  # raised once the other ranks know
            failure = error
        try:
            weight, loss = self._agree(failure, weight, loss)
        finally:
            del failure  # its traceback holds this frame, and with it the graph
        if self._reduce is not None:
            sums = self._reduce(sums)
        self._loss = loss / weight
        sums /= weight
        return sums

    def _agree(
        self,
        failure: BaseException | None,
        weight: float = 1.0,
        loss: float = 0.0,
        *,
        silent: bool = False,
    ) -> tuple[float, float]:
        """Add up weights and weighted losses over ranks; raise on all if one failed.

        Every pass, entering and leaving make this one reduction, so a rank that fails anywhere
        meets the others in it.
        """
        failed = float(failure is not None)
        if self._reduce is not None:
            device = self.parameters.device
            dtype = torch.float32 if device.type == "mps" else torch.float64
            totals = torch.tensor([weight, loss, failed], dtype=dtype, device=device)
            weight, loss, failed = self._reduce(totals).tolist()
        self._all_know = failed > 0
        if failure is not None and not silent:
            raise failure
        if failed and failure is None:
            raise ProbeError("probe: another rank failed; the cause stands in its own output.")
        return weight, loss

    def _weight(self, index: int) -> float:
        if len(self._batches) == 1 and self._reduce is None:
            return 1.0
        weight = batch_weight(self.module, self._batches[index])
        if not weight > 0:
            raise ProbeError(
                f"probe: expected batches of positive weight, got {weight} for batch {index}."
            )
        return weight

    def _graph_of(self, index: int) -> _Graph:
        if self._graph is not None:
            return self._graph
        if self._isolation is None:
            raise ProbeError("Landscape: expected to be used inside `with Landscape(...) as ...:`.")
        self._isolation.rewind()
        parameters = self.parameters.substitute(self._isolation.slots)
        self._set_mode()
        if self.parameters.widen:
            for part in self.module.modules():
                if isinstance(part, LightningModule):
                    part.__dict__["_dtype"] = self.parameters.dtype  # what self.dtype says
        _seed_everything(derive_seed("landscape", self._seed, index))
        batch = move_data_to_device(self._batches[index], self.parameters.device)
        batch = copy_batch(batch, self.parameters.dtype if self.parameters.widen else None)
        loss = self._objective(batch, self._batch_indices[index])
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        check_graph(loss, gradients, self.parameters.originals)
        graph = _Graph(parameters, loss, gradients)
        if len(self._batches) == 1:
            self._graph = graph
        return graph

    def _products(self, vectors: Tensor, graph: _Graph) -> Tensor:
        rows = []
        for vector in vectors:
            parts = self.parameters.unflatten(vector)
            pairs = [(g, v) for g, v in zip(graph.gradients, parts, strict=True) if g.requires_grad]
            if not pairs:  # the loss is linear
                rows.append(torch.zeros_like(vector))
                continue
            products = torch.autograd.grad(
                [g for g, _ in pairs],
                graph.parameters,
                grad_outputs=[v.to(g.dtype) for g, v in pairs],
                retain_graph=True,
                materialize_grads=True,
            )
            rows.append(self.parameters.flatten(products))
        return torch.stack(rows)

    def _set_mode(self) -> None:
        if self._mode == "eval":
            for part in self.module.modules():
                part.training = False
        elif not self.module.training:
            for part in self.module.modules():
                part.training = True


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global state is what modules draw from
