"""Products with the Hessian of a mean loss, as many in a pass over the batches as memory admits."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.probe.batch_derivatives import BatchDerivatives
from lightning_linf.probe.batch_mean import BatchMean
from lightning_linf.probe.each_batch import visit_curvatures
from lightning_linf.probe.functional_module import FunctionalModule


class MeanProducts:
    """Multiply vectors with the Hessian of the mean loss, or with those of two halves of it.

    Args:
        function: What has the batches.
        derivatives: Of each batch.
        mean: Over the batches of all ranks.
        ranks: That make the same calls.
        memory_gib: What the vectors of one pass may take, in GiB.
    """

    def __init__(
        self,
        function: FunctionalModule,
        derivatives: BatchDerivatives,
        mean: BatchMean,
        ranks: Ranks,
        memory_gib: float,
    ) -> None:
        self._function, self._derivatives = function, derivatives
        self._mean, self._ranks = mean, ranks
        self._memory_gib = memory_gib

    @property
    def per_pass(self) -> int:
        """How many products are formed in one pass over the batches."""
        if self._function.num_passes == 1:
            return 1
        parameters = self._function.parameters
        # a vector, its products with both halves of the batches, and their mean
        bytes_per_probe = 4 * parameters.most_local * parameters.dtype.itemsize
        return max(1, int(self._memory_gib * 2**30 / bytes_per_probe))

    def of(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with vectors (c, d)."""
        products = [self._in_one_pass(part) for part in torch.split(vectors, self.per_pass)]
        return products[0] if len(products) == 1 else torch.cat(products)

    def _in_one_pass(self, vectors: Tensor) -> Tensor:
        add = partial(self._derivatives.products, vectors=vectors)
        return self._mean.of(add, num_rows=len(vectors)).rows

    def curvatures(self, vectors: Tensor, visit: Callable[[Tensor, float], object]) -> Tensor:
        """Compute v^T H v for vectors v (c, d), and visit those of each batch. Shape: (c,)."""
        own: list[tuple[Tensor, float]] = []
        add = partial(
            self._derivatives.curvatures, vectors=vectors, visit=lambda *each: own.append(each)
        )
        rows = self._mean.of(add, num_rows=len(vectors)).rows
        visit_curvatures(self._function, self._ranks, own, visit)
        pairs = zip(vectors, rows, strict=True)
        return torch.stack([sum_in_pieces(torch.mul, v, row) for v, row in pairs])

    def of_halves(self, vectors: Tensor, first_half: float) -> Tensor:
        """Multiply the Hessians of both halves, of which the first has this share: (2, c, d)."""
        products = [self._halves_in_one_pass(part) for part in torch.split(vectors, self.per_pass)]
        both = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        both[0] /= first_half
        both[1] /= 1 - first_half
        return both

    def _halves_in_one_pass(self, vectors: Tensor) -> Tensor:
        """Each half's part of the products of the mean loss. Shapes: (c, d) -> (2, c, d)."""
        count = len(vectors)

        def place(index: int) -> slice:
            return slice(count * self._mean.half(index), count * (self._mean.half(index) + 1))

        if self._function.sharded is not None:  # a pass has batches of both halves
            add = partial(
                self._derivatives.products_of_halves, vectors=vectors, half=self._mean.half
            )
            return self._mean.of(add, num_rows=2 * count).rows.view(2, count, -1)
        products = partial(self._derivatives.products, vectors=vectors)
        return self._mean.of(products, num_rows=2 * count, place=place).rows.view(2, count, -1)
