"""A live module seen as a pure function of its parameters on given batches."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from lightning_linf.argument_checks import (
    check_callable,
    check_choice,
    check_positive,
    check_whole,
)
from lightning_linf.distributed.heartbeat import phase
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.functional.offload import Offload, offloading
from lightning_linf.functional.vector_shards import shards_of_vectors, sharing_vectors
from lightning_linf.probe.batch_derivatives import BatchDerivatives
from lightning_linf.probe.batch_list import list_batches
from lightning_linf.probe.batch_mean import BatchMean
from lightning_linf.probe.each_batch import visit_gradients
from lightning_linf.probe.functional_module import FunctionalModule, Mode
from lightning_linf.probe.loss_check import check_loss
from lightning_linf.probe.mean_products import MeanProducts
from lightning_linf.probe.memory_by_phase import Plan, ProbeMemory
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.simulation import largest_graph
from lightning_linf.probe.wrappers import unwrap
from lightning_linf.reparam import Reparameterization


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

    Sharded parameters (DTensors: ``fully_shard`` in one or two dimensions, tensor parallelism, or
    both) are gathered one at a time, where the module uses them, and again for each backward pass
    that needs them; the hooks of their policies are set aside, so that all is computed as on one
    device. All ranks of the default process group take part. A vector is then a shard of d numbers,
    ``landscape.parameters.num_local`` of them, and estimators reduce over ranks
    (:mod:`~lightning_linf.functional.vector_shards`). Every rank brings its own batches; those
    that a tensor-parallel group splits its work on are the same on all of it. As ``fully_shard``
    itself does, this asks that all ranks use the same parameters in the same order.

    Memory: a copy of the module's parameters and buffers, the graph of the gradient on one batch,
    and a few vectors: :func:`~lightning_linf.probe.probe_memory`. Of sharded parameters and vectors
    1 / W on each of W ranks, and the largest parameter or two whole.

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
        offload: "cpu": vectors that a measurement holds and no product needs wait on the CPU
            meanwhile, in pinned memory where CUDA is. All numbers are the same to the last bit.
            Default: they stay on the device, which is faster.
        reduce: Sums a tensor over ranks and returns it; every rank must then make the same calls.
            Default: one rank; of a sharded module, all of the default process group.
        reparameterization: The map A of coordinates in which the landscape is seen: parameters
            theta = A phi, gradient A^T g, Hessian A^T H A, offsets in phi. A
            :class:`~lightning_linf.reparam.Reparameterization`, such as ``Rotation()``, is bound to
            the parameters of the landscape; a linear map of vectors (d,) is taken as it is.
            Default: theta itself.
        matmul_precision: Of the matrix products in Hessian-vector products, in torch's own words.
            "highest": float32 in full, whatever training does. "high": on CUDA in TF32, faster, and
            what is multiplied is rounded to 10 bits of mantissa; convolutions stay in full, and so
            do losses, gradients and the graph. :func:`measure_geometry` says what it changes.
        whole_parameters: Gather all of a sharded module on every rank, on entering, so that vectors
            (d,) are whole, too: faster, for models that are small beside the memory.

    Raises:
        ValueError: If an argument has a wrong value, or ``reparameterization`` cannot be bound.
        ProbeError: If there is no batch, no usable parameter
            (:class:`~lightning_linf.probe.parameters.ParameterVector`) or loss
            (:func:`~lightning_linf.probe.loss_function.find_loss_function`), or, when evaluated,
            the loss is not a finite scalar or an operation in it has no second derivative.

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
        offload: Offload | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        reparameterization: Reparameterization | LinearMap | None = None,
        matmul_precision: MatmulPrecision = "highest",
        whole_parameters: bool = False,
    ) -> None:
        module = unwrap("Landscape", module)
        check_choice("Landscape", "mode", mode, get_args(Mode))
        check_choice("Landscape", "matmul_precision", matmul_precision, get_args(MatmulPrecision))
        check_positive("Landscape", "memory_gib", memory_gib)
        check_choice("Landscape", "offload", offload, get_args(Offload), or_none=True)
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
        indices = range(len(batches)) if batch_indices is None else batch_indices
        self.num_hvps = 0
        self.mode: Mode = mode
        self.matmul_precision: MatmulPrecision = matmul_precision
        self.reparameterization = reparameterization
        self.offload: Offload | None = offload
        self._exits = ExitStack()
        self._function = FunctionalModule(
            module, batches, indices, loss, mode, seed, parameters, whole_parameters
        )
        if reduce is None and self._function.has_sharded:
            reduce = _all_reduce
        self._derivatives = BatchDerivatives(self._function, reparameterization, matmul_precision)
        self.ranks = Ranks(reduce, self.parameters.device)
        self._mean = BatchMean(self._function, self.ranks)
        self._products = MeanProducts(
            self._function, self._derivatives, self._mean, self.ranks, memory_gib
        )
        self._loss: float | None = None

    def __enter__(self) -> Self:
        def share() -> None:
            self._function.share(self.ranks)
            self._derivatives.bind()

        self._loss = None
        self.ranks.start()
        try:
            self.ranks.together(self._function.enter)
            with phase("gathering parameters"):
                self.ranks.together(share)
        except BaseException:
            self._function.leave()
            raise
        self._exits.enter_context(offloading(self.offload))
        self._exits.enter_context(sharing_vectors(self.parameters.shards))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._derivatives.forget()
        self._exits.close()
        try:
            if not self.ranks.all_know and (exc is None or isinstance(exc, Exception)):
                # The other ranks wait for this one, in a pass or here. Silent: our own exception
                # is on its way already.
                self.ranks.agree(exc, silent=True)
        finally:
            self._function.leave()

    @property
    def parameters(self) -> ParameterVector:
        """The parameters theta, as one vector."""
        return self._function.parameters

    @property
    def batch_ranks(self) -> Ranks:
        """Ranks over which to add up what :meth:`each_gradient` and :meth:`curvatures` tell.

        Where vectors are shards every rank is told of all batches, so it is this rank alone.
        """
        is_told_all = shards_of_vectors() is not None
        return Ranks(None, self.parameters.device) if is_told_all else self.ranks

    @property
    def holdings(self) -> Holdings | None:
        """What ranks hold of vectors, for maps of shards; None where vectors are whole."""
        sharded = self._function.sharded
        return None if sharded is None else sharded.holdings

    @property
    def num_batches(self) -> int:
        """How many batches of this rank the loss is a mean over; of a sharded module, at most."""
        return self._function.num_passes

    @property
    def num_samples(self) -> float | None:
        """Weight of all batches of all ranks, by default their samples; None while unknown."""
        return self._mean.num_samples

    @property
    def probes_per_pass(self) -> int:
        """How many products :meth:`hvp` forms in one pass over the batches."""
        return self._products.per_pass

    def check(self) -> str | None:
        """Try on the first batch whether the loss is a function and its derivatives are right.

        :func:`measure_geometry` does so at each call, a monitor at the first probe of a training.

        Returns:
            A remark, if the gradient is not that of the loss; None if all is well.

        Raises:
            ProbeError: See :func:`~lightning_linf.probe.loss_check.check_loss`, which says how.
        """
        self._derivatives.forget()
        return self.ranks.together(partial(check_loss, self._function, self.ranks))

    def memory(self, num_probes: int, num_partitions: int) -> ProbeMemory:
        """Say what a measurement takes here: :func:`~lightning_linf.probe.probe_memory`."""
        each, has_halves = min(self.probes_per_pass, num_probes), self.first_half() is not None
        plan = Plan(
            self.num_batches, each, num_partitions, has_halves, self.offload, self.parameters.dtype
        )
        self._derivatives.forget()
        graph = self.ranks.together(partial(largest_graph, self._function))
        return ProbeMemory.of(graph, self.parameters, plan)

    def loss(self, offset: Tensor | None = None) -> float:
        """Mean loss over the batches, ``offset`` (d,) away from the present point."""
        if offset is not None:
            return self._mean.of(partial(self._derivatives.loss, offset=offset), num_rows=0).loss
        if self._loss is None:
            self.gradient()
        assert self._loss is not None
        return self._loss

    def gradient(self, offset: Tensor | None = None) -> Tensor:
        """Gradient of the mean loss (d,), ``offset`` (d,) away from the present point."""
        mean = self._mean.of(partial(self._derivatives.gradient, offset=offset), num_rows=1)
        if offset is None:
            self._loss = mean.loss
        return mean.rows[0]

    def each_gradient(self, visit: Callable[[Tensor, float], object]) -> None:
        """Call ``visit`` with the gradient (d,) and the weight of each batch of this rank.

        Where vectors are shards: with those of each batch of every rank, on all ranks, at the cost
        of a backward pass for each. Over ``batch_ranks`` what comes of them is to be added up.
        A batch that several ranks have, as with tensor parallelism, counts once. Every rank must
        call this; an exception on one is an exception on all.
        """
        visit_gradients(self._function, self._derivatives, self.ranks, visit)

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with one vector (d,) or with several (c, d).

        Cost in gradients (forward + backward), for M batches: M (1 + 2c) a pass of c products, or
        2 each after a first 1 if M = 1. Source: double backward (Pearlmutter 1994).
        """
        dim = self.parameters.num_local
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != dim:
            raise ValueError(
                f"Landscape.hvp: expected `vectors` of shape ({dim},) or (c, {dim}), "
                f"got {tuple(vectors.shape)}."
            )
        rows = vectors.reshape(-1, dim)
        products = self._products.of(rows)
        self.num_hvps += len(rows)
        return products.reshape(vectors.shape)

    def curvatures(self, vectors: Tensor, visit: Callable[[Tensor, float], object]) -> Tensor:
        """Compute v^T H v for vectors v (c, d), at the cost of :meth:`hvp`. Shape: (c,).

        ``visit`` is called with the curvatures (c,) of each batch and its weight: of this rank's
        batches, or, where vectors are shards, of those of every rank, on all ranks.
        """
        result = self._products.curvatures(vectors, visit)
        self.num_hvps += len(vectors)
        return result

    def first_half(self) -> float | None:
        """Share of the first of two halves of all batches in their weight; None if there is one.

        Halves alternate over batches and ranks. Every rank must call this.

        Raises:
            ProbeError: If a batch has no positive weight.
        """
        return self._mean.first_half()

    def hvp_of_halves(self, vectors: Tensor, first_half: float) -> Tensor:
        """Multiply the Hessians of two halves of the batches with vectors (c, d). Shape: (2, c, d).

        They cost what :meth:`hvp` costs, whose products are their mean with the weights
        ``first_half``, from :meth:`first_half`, and 1 minus it.
        """
        both = self._products.of_halves(vectors, first_half)
        self.num_hvps += len(vectors)
        return both


def _all_reduce(tensor: Tensor) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor
