"""Loss, gradient and Hessian-vector products of one batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.full_precision import MatmulPrecision, float32_precision
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.probe.autograd_graph import check_graph, gradients_of, products_of
from lightning_linf.probe.functional_module import FunctionalModule
from lightning_linf.reparam import Reparameterization


class _Graph(NamedTuple):
    parameters: list[Tensor]  # leaves
    loss: Tensor  # ()
    gradients: tuple[Tensor, ...]  # of the loss, with a graph of their own


class BatchDerivatives:
    """The loss of each batch, its gradient and products with its Hessian.

    In the coordinates phi of a linear map theta = A phi, the ``reparameterization``, these are
    A^T g and A^T H A. Each method returns rows (r, d) and the loss, which is what
    :class:`~lightning_linf.probe.batch_mean.BatchMean` adds up.
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
        """Free the graph that is kept where there is one batch alone."""
        self._kept_graph = None

    def loss(self, index: int, offset: Tensor) -> tuple[Tensor, float]:
        """Evaluate the loss alone, ``offset`` (d,) away; there are no rows."""
        _, loss = self._function.evaluate(index, self._to_parameters(offset))
        return self._function.parameters.zeros(0), loss.item()

    def gradient(self, index: int, offset: Tensor | None = None) -> tuple[Tensor, float]:
        """Compute the gradient (1, d), ``offset`` (d,) away or at the present point."""
        vector = self._function.parameters
        if offset is None and len(self._function.batches) == 1:
            graph = self._graph(index)  # kept for products
            gradient, loss = vector.flatten(graph.gradients).detach(), graph.loss
        else:
            parameters, loss = self._function.evaluate(index, self._to_parameters(offset))
            gradient = vector.flatten(gradients_of(loss, parameters))
        return self._to_coordinates(gradient)[None], loss.item()

    def products(self, index: int, vectors: Tensor) -> tuple[Tensor, float]:
        """Multiply the Hessian at the present point with vectors (c, d)."""
        graph = self._graph(index)
        # Not the graph: rounded activations would turn on ReLUs that are off in the loss.
        with float32_precision(self._matmul_precision):
            products = torch.stack([self._product(graph, v) for v in vectors])
        return products, graph.loss.item()

    def _product(self, graph: _Graph, coordinates: Tensor) -> Tensor:
        vector = self._function.parameters
        parts = vector.unflatten(self._to_parameters(coordinates))
        products = products_of(graph.gradients, graph.parameters, parts, retain_graph=True)
        return self._to_coordinates(vector.flatten(products))

    def _graph(self, index: int) -> _Graph:
        if self._kept_graph is not None:
            return self._kept_graph
        parameters, loss = self._function.evaluate(index)
        gradients = gradients_of(loss, parameters, create_graph=True)
        check_graph(loss, gradients, self._function.parameters.originals)
        graph = _Graph(parameters, loss, gradients)
        if len(self._function.batches) == 1:
            self._kept_graph = graph
        return graph

    def _to_parameters(self, vector: Any) -> Any:
        """Map a vector, or None, from the coordinates to the parameters."""
        return vector if vector is None or self._map is None else self._map.apply(vector)

    def _to_coordinates(self, vector: Tensor) -> Tensor:
        return vector if self._map is None else self._map.apply_transpose(vector)
