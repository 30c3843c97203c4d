"""Loss, gradient and Hessian-vector products of one batch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_linf.errors import ProbeError
from lightning_linf.functional.full_precision import MatmulPrecision, float32_precision
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.linear_map import LinearMap, ShardableMap
from lightning_linf.probe.autograd_graph import (
    GradientRoots,
    add_gradients,
    check_graph,
    gradients_of,
)
from lightning_linf.probe.early_sums import add_up_early
from lightning_linf.probe.functional_module import FunctionalModule
from lightning_linf.reparam import Reparameterization


class _Graph(NamedTuple):
    parameters: list[Tensor]  # leaves
    loss: float
    roots: GradientRoots


class BatchDerivatives:
    """The loss of each batch, its gradient and products with its Hessian.

    In the coordinates phi of a linear map theta = A phi, the ``reparameterization``, these are
    A^T g and A^T H A. Each method adds, in place, to the rows (r, d) of
    :class:`~lightning_linf.probe.batch_mean.BatchMean` what the batch has times its ``share``, and
    returns the loss of the batch. Where vectors are shards, it adds the sum over ranks of what each
    has of its own batch.
    """

    def __init__(
        self,
        function: FunctionalModule,
        reparameterization: Reparameterization | LinearMap | None,
        matmul_precision: MatmulPrecision,
    ) -> None:
        self._function = function
        self._matmul_precision: MatmulPrecision = matmul_precision
        self._reparameterization = reparameterization
        self._kept_graph: _Graph | None = None  # of the only batch
        self.bind()

    def bind(self) -> None:
        """Bind the reparameterization to the present parameters; it may not fit them.

        Raises:
            ProbeError: If vectors are shards, and it is a map of whole vectors.
        """
        given, vector = self._reparameterization, self._function.parameters
        self._map: LinearMap | None
        if isinstance(given, Reparameterization):
            given.selects(vector.names, len(vector.names))  # refuses what matches no name
            self._map = given.bind(vector.shapes, vector.names)
        else:
            self._map = given
        if self._map is None or not self._function.divides_vectors:
            return
        if not isinstance(self._map, ShardableMap):
            raise ProbeError(
                "Landscape: expected a map with `on_shards`, such as Rotation(), of a module that "
                f"is sharded over ranks, got {type(given).__name__}, which maps whole vectors. Use "
                "whole_parameters=True."
            )
        if self._function.sharded is not None:
            self._map = self._map.on_shards(self._function.sharded.holdings)

    def forget(self) -> None:
        """Free the graph that is kept where there is one batch alone.

        No other evaluation may come between it and its products: activation checkpointing runs the
        module again for them, as the last evaluation has left it. Nor do two graphs fit into memory
        as well as one.
        """
        self._kept_graph = None

    def loss(self, index: int, rows: Tensor, share: float, *, offset: Tensor) -> float:
        """Evaluate the loss alone, ``offset`` (d,) away; there are no rows."""
        self.forget()
        _, loss = self._function.evaluate(index, self._to_parameters(offset))
        value = loss.item()
        del loss
        self._function.free_copies()
        return value

    def gradient(
        self, index: int, rows: Tensor, share: float, *, offset: Tensor | None = None
    ) -> float:
        """Add the gradient (1, d), ``offset`` (d,) away or at the present point."""
        is_only = offset is None and self._function.num_passes == 1
        if is_only and self._kept_graph is None:  # its graph is kept for products
            return self._graph(index, rows[0], share).loss
        self.forget()
        parameters, loss = self._function.evaluate(index, self._to_parameters(offset))
        value = loss.item()
        with self._in_parameters(rows[0], share) as (total, factor):
            parts = self._function.parameters.unflatten(total)
            add_gradients(self._weighted(loss, share), parameters, parts, factor)
        del loss, parameters
        self._function.free_copies()
        return value

    def products(self, index: int, rows: Tensor, share: float, *, vectors: Tensor) -> float:
        """Add the products of the Hessian at the present point with vectors (c, d)."""
        graph = self._graph(index, share=share)
        for row, vector in zip(rows, vectors, strict=True):
            self._multiply(graph, vector, row, share)
        return graph.loss

    def products_of_halves(
        self,
        index: int,
        rows: Tensor,
        share: float,
        *,
        vectors: Tensor,
        half: Callable[[int], int],
    ) -> float:
        """Add shards of products (c, d) to the rows (2 c, d) of both halves of the batches."""
        graph, sharded = self._graph(index, share=share), self._function.sharded
        assert sharded is not None
        count = len(vectors)
        for number, vector in enumerate(vectors):
            with (
                self._in_parameters(rows[number], 1.0) as (first, _),
                self._in_parameters(rows[count + number], 1.0) as (second, _),
                sharded.in_halves(half(index), self._function.parameters.unflatten(second)),
            ):
                self._add_product(graph, self._to_parameters(vector), first, 1.0)
        return graph.loss

    def curvatures(
        self,
        index: int,
        rows: Tensor,
        share: float,
        *,
        vectors: Tensor,
        visit: Callable[[Tensor, float], object],
    ) -> float:
        """Add products with vectors (c, d), and visit v^T H v (c,) of this rank's batch alone."""
        graph, sharded = self._graph(index, share=share), self._function.sharded
        along = []
        for row, vector in zip(rows, vectors, strict=True):
            if sharded is None:
                before = sum_in_pieces(torch.mul, vector, row)
                self._multiply(graph, vector, row, share)
                along.append(sum_in_pieces(torch.mul, vector, row) - before)
            else:
                parts = self._function.parameters.unflatten(self._to_parameters(vector))
                with sharded.curvature_along(parts) as curvature:
                    self._multiply(graph, vector, row, share)
                along.append(curvature)
        if share:  # otherwise the batch was taken already
            visit(torch.stack(along) / share, share)
        return graph.loss

    def each_gradient(self, index: int, owners: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """Give for each owner the shard (d,) of the gradient of its batch alone."""
        self.forget()
        parameters, loss = self._function.evaluate(index)
        for owner in owners:
            rows = self._function.parameters.zeros(1)
            mine = float(self._function.rank == owner)
            with self._in_parameters(rows[0], 1.0) as (total, factor):
                parts = self._function.parameters.unflatten(total)
                add_gradients(mine * loss, parameters, parts, factor, retain_graph=True)
            yield owner, rows[0]
        del loss, parameters
        self._function.free_copies()

    def _multiply(self, graph: _Graph, vector: Tensor, row: Tensor, share: float) -> None:
        """Add the product with a vector (d,) in the coordinates, times the share, to a row."""
        with self._in_parameters(row, share) as (total, factor):
            self._add_product(graph, self._to_parameters(vector), total, factor)

    def _add_product(self, graph: _Graph, vector: Tensor, total: Tensor, factor: float) -> None:
        parts, sums = map(self._function.parameters.unflatten, (vector, total))
        sharded = self._function.sharded
        added_early = nullcontext() if sharded is None else sharded.adding_to(sums)
        # Not the graph: rounded activations would turn on ReLUs that are off in the loss.
        with float32_precision(self._matmul_precision), added_early:
            graph.roots.add_products(graph.parameters, parts, sums, factor, retain_graph=True)

    def _graph(self, index: int, row: Tensor | None = None, share: float = 1.0) -> _Graph:
        """Give the graph of the gradient of a batch; add the gradient to a row (d,), if given."""
        if self._kept_graph is not None:
            return self._kept_graph
        vector = self._function.parameters
        parameters, loss = self._function.evaluate(index)
        value, loss = loss.item(), self._weighted(loss, share)
        gradients = gradients_of(loss, parameters)
        check_graph(loss, gradients, vector.originals)
        if self._function.sharded is not None:
            add_up_early(gradients, self._function.sharded.wholes)
        if row is not None:
            with self._in_parameters(row, share) as (total, factor):
                for part, gradient in zip(vector.unflatten(total), gradients, strict=True):
                    part.add_(gradient.detach(), alpha=factor)
        graph = _Graph(parameters, value, GradientRoots(gradients))
        if self._function.num_passes == 1:
            self._kept_graph = graph
        return graph

    @contextmanager
    def _in_parameters(self, row: Tensor, share: float) -> Iterator[tuple[Tensor, float]]:
        """Give what to add to, and with which factor, for a row (d,) in the coordinates."""
        if self._function.sharded is not None:
            share = 1.0  # is in the loss, since what is added is a sum over ranks
        if self._map is None:
            yield row, share
        else:
            total = self._function.parameters.zeros()
            yield total, 1.0
            row.add_(self._map.apply_transpose(total), alpha=share)

    def _weighted(self, loss: Tensor, share: float) -> Tensor:
        return loss if self._function.sharded is None else loss * share

    def _to_parameters(self, vector: Any) -> Any:
        """Map a vector, or None, from the coordinates to the parameters."""
        return vector if vector is None or self._map is None else self._map.apply(vector)
