"""The Hessian of a landscape as the next step of an optimizer meets it."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from lightning_linf.distributed.gathering import gather
from lightning_linf.functional.vector_shards import shards_of_vectors, sizes_here
from lightning_linf.optim import Reparameterized
from lightning_linf.optim.linear_step import linear_steps
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.products import HessianProducts


class PreconditionedHessian:
    r"""Multiply with :math:`S (A^\top H A + \Lambda) S`, whose largest eigenvalue is the edge.

    A are the optimizer's coordinates, :math:`\Lambda` the coupled weight decay, and S the diagonal
    of :math:`\sqrt{\eta / (P c)}` with learning rate, preconditioner and threshold of each entry.
    The eigenvalue is 1 where the frozen step begins to diverge, also if parameter groups differ in
    momentum and decay: for a step that multiplies all by z, each entry x of the parameters obeys

    .. math:: \frac{(z - k)(z - \mu)}{z (1 - \tau)} \frac{P}{\eta} x + (H x) = 0

    (in the letters of :func:`~lightning_linf.functional.stability.stability_threshold`). On the
    unit circle the imaginary part of the fraction has the sign of Im z for every entry, so only
    z = -1 and 1 are left, and at z = -1 the fraction is minus the threshold c. The same holds for
    Nesterov's momentum.

    Args:
        landscape: Inside its ``with``, in the coordinates of the parameters.
        products: With its Hessian.
        optimizers: That step its parameters.

    Raises:
        ValueError: As :func:`~lightning_linf.optim.linear_step.linear_steps`.
        ProbeError: As that does.
    """

    def __init__(
        self, landscape: Landscape, products: HessianProducts, optimizers: Sequence[Optimizer]
    ) -> None:
        self._products = products
        vector = landscape.parameters
        maps = landscape.ranks.together(
            lambda: [
                optimizer.coordinates(vector.originals)
                for optimizer in optimizers
                if isinstance(optimizer, Reparameterized)
            ]
        )
        holdings = landscape.holdings
        self._maps = maps if holdings is None else [each.on_shards(holdings) for each in maps]
        steps = landscape.ranks.together(lambda: linear_steps(optimizers))
        squares = [steps[p].rates / steps[p].threshold for p in vector.originals]
        is_whole = shards_of_vectors() is None
        self._roots = vector.flatten(gather(squares) if is_whole else squares).sqrt_()
        self._decays = [steps[p].weight_decay for p in vector.originals]
        self._sizes = sizes_here(vector.sizes)

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply with a vector (d,) of the scaled coordinates."""
        scaled = self._roots * vector
        theta = scaled
        for each in self._maps:
            theta = each.apply(theta)
        product = self._products.of_all(theta)
        for each in self._maps:
            product = each.apply_transpose(product)
        parts, phis = (each.split_with_sizes(self._sizes) for each in (product, scaled))
        for part, phi, decay in zip(parts, phis, self._decays, strict=True):
            part.add_(phi, alpha=decay)
        return product.mul_(self._roots)
