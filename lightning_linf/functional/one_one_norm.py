"""Row norms and (1,1)-norm, the entrywise 1-norm, of the Hessian from Cauchy probes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.control_variate import corrected
from lightning_linf.functional.finite import require_finite
from lightning_linf.functional.product_sums import (
    ProductSums,
    largest_mean_log,
    mean_logs,
    product_sums_of,
    require_every_probe,
)
from lightning_linf.functional.runs import row_parts, tensor_sums
from lightning_linf.functional.surrogates import surrogate_log_ratios


class OneOneNormEstimate(NamedTuple):
    """An estimate of the (1,1)-norm of a Hessian."""

    value: Tensor  # (): in loss per parameter squared
    relative_error: Tensor  # (): standard error over value, of the probes alone
    tensor_norms: Tensor  # (T,): what the rows of each parameter tensor add to value


def row_norms(products: Tensor) -> Tensor:
    r"""Estimate the 1-norm of each row of the Hessian, :math:`\sum_j |H_{ij}|`, without bias.

    If the entries of ``v`` are independent standard Cauchy numbers, entry i of ``H v`` is a Cauchy
    number whose scale is the 1-norm of row i. The geometric mean of its magnitude over the probes,
    times a known factor, has exactly that scale as its mean.

    Args:
        products: Rows ``H v`` for ``k >= 3`` independent standard Cauchy ``v``. Shape (k, d).

    Returns:
        The estimates, shape (d,), in the units of ``H`` (loss per parameter squared).

    Raises:
        ValueError: If ``products`` is not 2-D, has fewer than 3 rows, or is not finite.

    Source:
        Li, Hastie & Church, JMLR 8 (2007), the bias-corrected geometric mean. Relative standard
        deviation of each entry: about 1.6 / sqrt(k).
    """
    if products.ndim != 2:
        raise ValueError(
            f"one_one_norm: expected `products` of shape (k, d), got {tuple(products.shape)}. "
            "Stack the k products H v."
        )
    require_finite(products.isfinite().all(), "one_one_norm", "finite `products`")
    num_probes = len(products)
    if num_probes < 3:  # E|c|^(2/k) of a Cauchy c, hence the variance, is finite from k = 3
        raise ValueError(
            f"one_one_norm: expected at least 3 probes, got {num_probes}. Draw more probes."
        )
    log_sum = products.abs().log().sum(dim=0)
    # E|c|^(1/k) = 1 / cos(pi / 2k) for standard Cauchy c: this factor removes the bias.
    debias = math.cos(math.pi / (2 * num_probes)) ** num_probes
    return debias * (log_sum / num_probes).exp()  # a zero row has log_sum = -inf and gives 0


def one_one_norm(products: Tensor) -> Tensor:
    r"""Estimate :math:`\|H\|_{1,1} = \sum_{ij} |H_{ij}|` without bias, from probes of any origin.

    It is the sum of :func:`row_norms`, with the same argument and errors. All rows share the
    probes, so their errors do not average out: for probes of known seeds,
    :func:`cross_fitted_one_one_norm` removes most of what is common to them.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> v = torch.distributions.Cauchy(0.0, 1.0).sample((2000, 2))
        >>> bool((one_one_norm(v @ H) - 4.0).abs() < 0.4)
        True
    """
    return row_norms(products).sum()


def cross_fitted_one_one_norm(
    products: Tensor, *, seed: int, sizes: Sequence[int] | None = None
) -> OneOneNormEstimate:
    r"""Estimate :math:`\|H\|_{1,1} = \sum_{ij} |H_{ij}|` from products with seeded Cauchy probes.

    The plain geometric mean (:func:`one_one_norm`) recovers each row's norm, but all rows meet the
    same probes and so share most of the error. That shared error can be seen and taken off. A
    *surrogate row* is a row ``w * l`` that we make up, with positive weights ``w`` and random
    multipliers ``l``. Its product with a probe is Cauchy with the scale ``sum_i w_i |l_i|``, which
    we know. Passed through the same geometric mean, a surrogate shows what these probes do to a row
    of known norm. The estimate is divided by the average over surrogates of what they show, as far
    as the real rows follow them, and by the known mean of that, as far as they do not
    (:func:`~lightning_linf.functional.control_variate.corrected`).

    Surrogates behave like rows of H if their weights are the norms of the columns, which by
    symmetry are those of the rows. Weights and probes must be independent, so the weights for the
    even probes are row norms estimated from the odd ones, and the other way round: cross-fitting.
    Being noisy, the logarithms of these norms are shrunk towards the mean of their tensor. Real and
    surrogate rows pass through the same nonlinear mean, so its bias cancels to first order.

    Args:
        products: Rows ``H v``, row k for ``v = cauchy(d, seed=seed, probe=k)``. Shape (n, d),
            ``n >= 4``.
        seed: Seed of the probes.
        sizes: Number of entries of each parameter tensor, in order; one tensor if None.

    Returns:
        Value, relative standard error and each tensor's part.

    Raises:
        ValueError: If the shape is wrong, there are fewer than 4 products, or one is not finite.

    Source:
        Quantity: Xie, Mohamadi & Li, arXiv:2410.08198. Row norms: Li, Hastie & Church, JMLR 8
        (2007). The control variate is ours. Its multipliers have a Laplace distribution, the best
        of seven that were tried: rows of Hessians are sparser than row norms times random signs.
        Cost: n Hessian-vector products and O(d) memory for any n. Errors on sparse and dense
        matrices and on trained networks: `benchmarks/results/one_one_norm.txt`.

    Example:
        >>> from lightning_linf.functional import cauchy
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> v = torch.stack([cauchy(2, seed=0, probe=k) for k in range(400)])
        >>> bool((cross_fitted_one_one_norm(v @ H, seed=0).value - 4.0).abs() < 0.4)
        True
    """
    if products.ndim != 2:
        raise ValueError(
            f"cross_fitted_one_one_norm: expected `products` of shape (n, d), "
            f"got {tuple(products.shape)}. Stack the n products H v."
        )
    sizes = [products.shape[1]] if sizes is None else sizes
    return cross_fitted_one_one_norm_compute(product_sums_of(products, sizes), sizes, seed)


def cross_fitted_one_one_norm_compute(
    sums: ProductSums, sizes: Sequence[int], seed: int
) -> OneOneNormEstimate:
    """Turn complete sums into the estimate; draws the probes of ``seed`` again, chunk by chunk.

    Memory beside the sums: a few chunks, and at most 65,536 numbers a probe.
    """
    require_every_probe(sums, "cross_fitted_one_one_norm")
    num_probes, largest = len(sums.num_seen), largest_mean_log(sums)
    # Geometric means over the largest; a zero row gives 0.
    parts = row_parts(lambda rows: mean_logs(sums, rows).sub_(largest).exp_(), sizes, sums.log_sums)
    tensor_norms = tensor_sums(parts.sums, sizes)
    total = tensor_norms.sum()
    if total == 0:  # the loss is locally linear
        return OneOneNormEstimate(total, torch.zeros_like(total), tensor_norms)
    correction = corrected(
        parts,
        sizes,
        sums.run_log_means,
        surrogate_log_ratios(sums.log_sums, num_probes, sizes, seed),
        observed=lambda means: means.exp().mean(dim=-1),
        expected=lambda n: math.cos(math.pi / (2 * n)) ** -n,
    )
    scale = largest.exp() / correction.divisor
    return OneOneNormEstimate(total * scale, correction.relative_error, tensor_norms * scale)
