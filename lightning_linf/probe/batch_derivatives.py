"""Loss, gradient and Hessian-vector products of one batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from lightning_linf.functional.full_precision import MatmulPrecision, float32_precision
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.probe.autograd_graph import (
    GradientRoots,
    add_gradients,
    check_graph,
    gradients_of,
)
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
    returns the loss of the batch.
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
        """Bind the reparameterization to the present parameters; it may not fit them."""
        given, vector = self._reparameterization, self._function.parameters
        self._map: LinearMap | None
        if isinstance(given, Reparameterization):
            given.selects(vector.names, len(vector.names))  # refuses what matches no name
            self._map = given.bind(vector.shapes, vector.names)
        else:
            self._map = given

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
        is_only = offset is None and len(self._function.batches) == 1
        if is_only and self._kept_graph is None:  # its graph is kept for products
            return self._graph(index, rows[0], share).loss
        self.forget()
        parameters, loss = self._function.evaluate(index, self._to_parameters(offset))
        with self._in_parameters(rows[0], share) as (total, factor):
            parts = self._function.parameters.unflatten(total)
            add_gradients(loss, parameters, parts, factor)
        value = loss.item()
        del loss, parameters
        self._function.free_copies()
        return value

    def products(self, index: int, rows: Tensor, share: float, *, vectors: Tensor) -> float:
        """Add the products of the Hessian at the present point with vectors (c, d)."""
        graph = self._graph(index)
        # Not the graph: rounded activations would turn on ReLUs that are off in the loss.
        with float32_precision(self._matmul_precision):
            for row, vector in zip(rows, vectors, strict=True):
                with self._in_parameters(row, share) as (total, factor):
                    unflatten = self._function.parameters.unflatten
                    graph.roots.add_products(
                        graph.parameters,
                        unflatten(self._to_parameters(vector)),
                        unflatten(total),
                        factor,
                        retain_graph=True,
                    )
        return graph.loss

    def _graph(self, index: int, row: Tensor | None = None, share: float = 1.0) -> _Graph:
        """Give the graph of the gradient of a batch; add the gradient to a row (d,), if given."""
        if self._kept_graph is not None:
            return self._kept_graph
        vector = self._function.parameters
        parameters, loss = self._function.evaluate(index)
        gradients = gradients_of(loss, parameters)
        check_graph(loss, gradients, vector.originals)
        if row is not None:
            with self._in_parameters(row, share) as (total, factor):
                for part, gradient in zip(vector.unflatten(total), gradients, strict=True):
                    part.add_(gradient.detach(), alpha=factor)
        graph = _Graph(parameters, loss.item(), GradientRoots(gradients))
        if len(self._function.batches) == 1:
            self._kept_graph = graph
        return graph

    @contextmanager
    def _in_parameters(self, row: Tensor, share: float) -> Iterator[tuple[Tensor, float]]:
        """Give what to add to, and with which factor, for a row (d,) in the coordinates."""
        if self._map is None:
            yield row, share
        else:
            total = self._function.parameters.zeros()
            yield total, 1.0
            row.add_(self._map.apply_transpose(total), alpha=share)

    def _to_parameters(self, vector: Any) -> Any:
        """Map a vector, or None, from the coordinates to the parameters."""
        return vector if vector is None or self._map is None else self._map.apply(vector)
