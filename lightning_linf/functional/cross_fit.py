"""The (1,1)-norm with a cross-fitted control variate: a third of the error for the same cost."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.control_variate import (
    LOG_CAUCHY_VARIANCE,
    corrected,
    run_sizes,
    run_sums,
)
from lightning_linf.functional.random import (
    cauchy as cauchy,
)
from lightning_linf.functional.random import (
    cauchy_chunk,
    chunks,
    laplace_chunk,
)

NUM_SURROGATES = 64  # their own noise is then a tenth of what the control variate leaves


class CrossFitSums(NamedTuple):
    """What is kept of the products of n probes: sums, so that batches and ranks add up."""

    log_sums: Tensor  # (2, d): sum of log|Hv| over the even and over the odd probes
    run_log_means: Tensor  # (n, R): per probe, mean of log|Hv| over the non-zero rows of each run
    num_seen: Tensor  # (n,): how often each probe was added, 1 once complete


class OneOneNormEstimate(NamedTuple):
    """An estimate of the (1,1)-norm of a Hessian."""

    value: Tensor  # (): in loss per parameter squared
    relative_error: Tensor  # (): standard error over value; two of it cover 95 %
    tensor_norms: Tensor  # (T,): each tensor's rows' part of value


def cross_fit_init(sizes: Sequence[int], num_probes: int, like: Tensor) -> CrossFitSums:
    """Make empty sums for ``num_probes`` probes of a Hessian whose rows belong to T tensors.

    Args:
        sizes: Number of entries of each parameter tensor, in order. Length T, sum d.
        num_probes: Number of probes n, at least 4 (two in each half).
        like: A tensor with the device and dtype of the products; sums are float32 or wider.

    Raises:
        ValueError: If ``num_probes`` is below 4.
    """
    if num_probes < 4:
        raise ValueError(
            f"cross_fitted_one_one_norm: expected `num_probes` >= 4 (two in each half), "
            f"got {num_probes}. Draw more probes."
        )
    dtype = torch.promote_types(like.dtype, torch.float32)
    return CrossFitSums(
        log_sums=like.new_zeros(2, sum(sizes), dtype=dtype),
        run_log_means=like.new_zeros(num_probes, sum(map(len, run_sizes(sizes))), dtype=dtype),
        num_seen=like.new_zeros(num_probes, dtype=torch.int64),
    )


def cross_fit_update(sums: CrossFitSums, product: Tensor, probe: int, sizes: Sequence[int]) -> None:
    """Add, in place, the product ``H v`` of probe number ``probe``. Shape of ``product``: (d,)."""
    if not 0 <= probe < len(sums.num_seen):
        raise ValueError(
            f"cross_fitted_one_one_norm: expected `probe` from 0 to {len(sums.num_seen) - 1}, "
            f"got {probe}. Ask for more probes at the start."
        )
    if product.shape != sums.log_sums.shape[1:]:
        raise ValueError(
            f"cross_fitted_one_one_norm: expected a product of shape "
            f"{tuple(sums.log_sums.shape[1:])}, got {tuple(product.shape)}."
        )
    if not product.isfinite().all():
        raise ValueError(
            f"cross_fitted_one_one_norm: expected a finite product for probe {probe}, got inf or "
            "NaN. Look at the loss and the parameters at this point."
        )
    logs = product.to(sums.log_sums.dtype).abs().log()
    sums.log_sums[probe % 2] += logs
    finite = logs.isfinite()
    totals = run_sums(torch.where(finite, logs, 0.0), sizes)
    sums.run_log_means[probe] += totals / run_sums(finite.to(logs), sizes).clamp(min=1)
    sums.num_seen[probe] += 1


def cross_fit_compute(sums: CrossFitSums, sizes: Sequence[int], seed: int) -> OneOneNormEstimate:
    """Turn complete sums into the estimate; draws the probes of ``seed`` again, chunk by chunk."""
    num_probes = len(sums.num_seen)
    if not (sums.num_seen == 1).all():
        raise ValueError(
            f"cross_fitted_one_one_norm: expected each of the {num_probes} probes once, got counts "
            f"{sums.num_seen.tolist()}. Add every probe exactly once."
        )
    logs = sums.log_sums.sum(dim=0) / num_probes
    largest = logs.max().clamp(min=torch.finfo(logs.dtype).min)  # all rows may be 0
    norms = (logs - largest).exp()  # geometric means, of a scale that fits; a zero row gives 0
    tensor_norms = torch.stack([part.sum() for part in norms.split_with_sizes(list(sizes))])
    total = tensor_norms.sum()
    if total == 0:  # the loss is locally linear
        return OneOneNormEstimate(total, torch.zeros_like(total), tensor_norms)
    correction = corrected(
        norms,
        sizes,
        sums.run_log_means,
        _surrogate_log_ratios(sums, sizes, seed),
        observed=lambda means: means.exp().mean(dim=-1),
        expected=lambda n: math.cos(math.pi / (2 * n)) ** -n,
    )
    scale = largest.exp() / correction.divisor
    return OneOneNormEstimate(total * scale, correction.relative_error, tensor_norms * scale)


def cross_fitted_one_one_norm(
    products: Tensor, *, seed: int, sizes: Sequence[int] | None = None
) -> OneOneNormEstimate:
    r"""Estimate :math:`\|H\|_{1,1} = \sum_{ij} |H_{ij}|` from products with seeded Cauchy probes.

    The plain geometric mean (:func:`one_one_norm`) recovers each row's norm, but all rows share the
    probes and hence most of the error. A *surrogate row* ``sum_i l_i w_i v_i`` with known weights
    ``w`` and multipliers ``l`` is Cauchy with the known scale ``sum_i |l_i| w_i``: passed through
    the same geometric mean, it shows what these probes do to a row of a known norm, and the sum is
    divided by the average over surrogates; or, as far as the rows do not follow them, by its known
    mean (:func:`~lightning_linf.functional.control_variate.corrected`). The weights are the row
    norms (by symmetry the column norms) estimated from the *other* half of the probes, so that
    weights and probes are independent; log norms are shrunk towards their tensor's mean as far as
    noise explains their spread. Because real rows and surrogates pass through the same nonlinear
    mean, its bias cancels to first order.

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
        (2007). The control variate is ours; Laplace multipliers, because rows of Hessians are
        sparser than row norms times random signs, were the best of seven distributions tried.
        Cost: n Hessian-vector products and O(d) memory for any n. Errors on sparse and dense
        matrices and on trained networks: `benchmarks/results/one_one_norm.txt`.

    Example:
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
    sums = cross_fit_init(sizes, len(products), products)
    for probe, product in enumerate(products):
        cross_fit_update(sums, product, probe, sizes)
    return cross_fit_compute(sums, sizes, seed)


def _surrogate_log_ratios(sums: CrossFitSums, sizes: Sequence[int], seed: int) -> Tensor:
    """Log of |surrogate| over its known scale, per surrogate and probe. Shape: (m, n)."""
    num_probes, dim = len(sums.num_seen), sums.log_sums.shape[1]
    dtype, device = sums.log_sums.dtype, sums.log_sums.device
    halves = [range(0, num_probes, 2), range(1, num_probes, 2)]
    # weights[h] serve the probes of half h and come from the other half
    weights = [
        _shrunken_norms(sums.log_sums[1 - h] / len(halves[1 - h]), len(halves[1 - h]), sizes)
        for h in (0, 1)
    ]
    values = sums.log_sums.new_zeros(NUM_SURROGATES, num_probes)
    scales = sums.log_sums.new_zeros(NUM_SURROGATES, 2)
    for index, part in chunks(dim):
        size = part.stop - part.start
        multipliers = laplace_chunk(
            NUM_SURROGATES, size, seed=seed, chunk=index, dtype=dtype, device=device
        )
        for h, probes in enumerate(halves):
            rows = multipliers * weights[h][part]  # (m, size)
            scales[:, h] += rows.abs().sum(dim=1)
            for k in probes:  # one at a time: memory must not grow with their number
                draw = cauchy_chunk(
                    size, seed=seed, probe=k, chunk=index, dtype=dtype, device=device
                )
                values[:, k] += rows @ draw
    scale_of_probe = scales[:, torch.arange(num_probes, device=device) % 2]
    return (values / scale_of_probe).abs().log()


def _shrunken_norms(log_norms: Tensor, num_probes: int, sizes: Sequence[int]) -> Tensor:
    """Weights (d,) from noisy log row norms, by empirical Bayes within each tensor.

    The spread of log norms in a tensor is their true variance plus a known noise variance; each is
    moved towards the tensor's mean by the share of the spread that noise explains.
    """
    noise = LOG_CAUCHY_VARIANCE / num_probes
    parts = []
    for part in log_norms.split_with_sizes(list(sizes)):
        finite = part.isfinite()  # -inf marks a zero row, whose weight stays 0
        mean = _mean_of_finite(part)
        variance = _mean_of_finite((part - mean).square())
        keep = ((variance - noise) / variance.clamp(min=1e-12)).clamp(min=0.0)
        parts.append(torch.where(finite, mean + keep * (part - mean), part))
    shrunken = torch.cat(parts)
    return (shrunken - shrunken.max()).exp()  # only ratios matter: no overflow


def _mean_of_finite(values: Tensor) -> Tensor:
    finite = values.isfinite()
    return torch.where(finite, values, 0.0).sum() / finite.sum().clamp(min=1)
