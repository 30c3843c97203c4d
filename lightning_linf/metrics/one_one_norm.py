"""The (1,1)-norm over a stream of Hessian-vector products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_linf.functional.one_one_norm import (
    OneOneNormEstimate,
    cross_fitted_one_one_norm_compute,
)
from lightning_linf.functional.product_sums import (
    ProductSums,
    product_sums_init,
    product_sums_update,
)


class OneOneNorm(Metric):
    """:func:`~lightning_linf.functional.cross_fitted_one_one_norm` of products one at a time.

    Probes may arrive in any order and on any rank, but each exactly once: all states are sums. They
    hold 2 d numbers, and at most 64 for each tensor and probe. With one parameter tensor
    torchmetrics turns results of shape (1,) into ().

    Args:
        sizes: Number of entries of each parameter tensor, in order; their sum is d.
        num_probes: Number of probes n, at least 4.
        seed: Seed of the probes: number k is ``functional.cauchy(d, seed=seed, probe=k)``.
        dtype: Dtype of the states; float32 or wider.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_probes`` is below 4, a product has the wrong shape or is not finite,
            or ``compute`` is called before every probe was added exactly once.

    Example:
        >>> from lightning_linf.functional import cauchy
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> metric = OneOneNorm(sizes=[2], num_probes=400)
        >>> for k in range(400):
        ...     metric.update(H @ cauchy(2, seed=0, probe=k), probe=k)
        >>> bool((metric.compute().value - 4.0).abs() < 0.4)
        True
    """

    full_state_update = False
    log_sums: Tensor
    run_log_means: Tensor
    num_seen: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        num_probes: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = list(sizes)
        self.seed = seed
        initial = product_sums_init(self.sizes, num_probes, torch.empty(0, dtype=dtype))
        for name, value in zip(initial._fields, initial, strict=True):
            self.add_state(name, value, dist_reduce_fx="sum")

    def update(self, product: Tensor, probe: int) -> None:
        """Add the product ``H v``, shape (d,), of probe number ``probe``."""
        product_sums_update(self._sums(), product, probe, self.sizes)

    def compute(self) -> OneOneNormEstimate:
        """Estimate from all probes."""
        return cross_fitted_one_one_norm_compute(self._sums(), self.sizes, self.seed)

    def _sums(self) -> ProductSums:
        return ProductSums(self.log_sums, self.run_log_means, self.num_seen)
