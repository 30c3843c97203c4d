"""Sums over Hessian-vector products with Cauchy probes, from which norms are estimated."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.finite import all_finite, require_finite
from lightning_linf.functional.offload import bring_back
from lightning_linf.functional.random import chunks
from lightning_linf.functional.runs import add_to_runs, run_counts, run_pieces, run_starts
from lightning_linf.functional.vector_shards import (
    max_over_shards,
    num_here,
    sum_over_shards,
)
from lightning_linf.kernels import runs_kernels


class ProductSums(NamedTuple):
    """What is kept of the products ``H v`` with n probes, instead of n vectors.

    All are sums, so those of two sets of probes, on different ranks say, add up to those of all.
    Where vectors are shards, so are the sums of logarithms, and the rest is the same on all ranks.
    A *run* is one of R stretches of neighbouring rows of a tensor
    (:func:`~lightning_linf.functional.runs.run_counts`).
    """

    log_sums: Tensor  # (2, d): sum of log|Hv| over the even probes, and over the odd ones
    run_log_means: Tensor  # (n, R): mean of log|Hv| over the non-zero rows of each run, per probe
    num_seen: Tensor  # (n,): how often each probe was added; 1 everywhere once all have been


def product_sums_init(sizes: Sequence[int], num_probes: int, like: Tensor) -> ProductSums:
    """Make empty sums for ``num_probes`` probes of a Hessian whose rows belong to T tensors.

    Args:
        sizes: Number of entries of each parameter tensor, in order. Length T, sum d.
        num_probes: Number of probes n, at least 4: two of even and two of odd number.
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
    return ProductSums(
        log_sums=like.new_zeros(2, num_here(sum(sizes)), dtype=dtype),
        run_log_means=like.new_zeros(num_probes, sum(run_counts(sizes)), dtype=dtype),
        num_seen=like.new_zeros(num_probes, dtype=torch.int64),
    )


def product_sums_update(
    sums: ProductSums, product: Tensor, probe: int, sizes: Sequence[int]
) -> None:
    """Add, in place, the product ``H v`` of probe number ``probe``. Shape of ``product``: (d,).

    Memory beside the sums and the product: a few chunks. Sums of logarithms that have been
    :func:`~lightning_linf.functional.offload.set_aside` are brought back for it, one half of them.
    """
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
    expected = f"a finite product for probe {probe}"
    require_finite(all_finite(product), "cross_fitted_one_one_norm", expected)
    log_sums = sums.log_sums[probe % 2]
    of_runs = sums.run_log_means.new_zeros(2, sums.run_log_means.shape[1])
    here = bring_back(log_sums, product.device)
    _add_logs(here, of_runs[0], of_runs[1], product, sizes)
    if here is not log_sums:
        log_sums.copy_(here)
    totals, counts = sum_over_shards(of_runs)
    sums.run_log_means[probe] += totals / counts.clamp(min=1)
    sums.num_seen[probe] += 1


def _add_logs(
    log_sums: Tensor, totals: Tensor, counts: Tensor, product: Tensor, sizes: Sequence[int]
) -> None:
    """Add log|product| to ``log_sums``; sum those of non-zero rows by run, and count these rows."""
    if runs_kernels(product.device):
        from lightning_linf.kernels.run_logs import add_run_logs

        add_run_logs(log_sums, totals, counts, product, run_starts(sizes, product.device))
        return
    for piece in run_pieces(sizes, product.device):
        magnitudes = product[piece.rows].to(log_sums.dtype).abs()
        logs = magnitudes.log()
        log_sums[piece.rows] += logs
        add_to_runs(counts, magnitudes.sign_(), piece)
        add_to_runs(totals, logs.nan_to_num_(neginf=0.0), piece)  # -inf: the log of a zero


def product_sums_of(products: Tensor, sizes: Sequence[int]) -> ProductSums:
    """Sum over all rows of ``products``, where row k is that of probe number k. Shape: (n, d)."""
    sums = product_sums_init(sizes, len(products), products)
    for probe, product in enumerate(products):
        product_sums_update(sums, product, probe, sizes)
    return sums


def require_every_probe(sums: ProductSums, function: str) -> None:
    """Raise a ValueError in the name of ``function`` unless each probe was added exactly once."""
    if not (sums.num_seen == 1).all():
        raise ValueError(
            f"{function}: expected each of the {len(sums.num_seen)} probes once, got counts "
            f"{sums.num_seen.tolist()}. Add every probe exactly once."
        )


def mean_logs(sums: ProductSums, rows: slice) -> Tensor:
    """Mean over all probes of log|Hv|, for some rows; a new tensor. Shape: (rows,)."""
    return (sums.log_sums[0, rows] + sums.log_sums[1, rows]).div_(len(sums.num_seen))


def largest_mean_log(sums: ProductSums) -> Tensor:
    """Find the largest of all :func:`mean_logs`, or the least finite number if all are -inf. ()."""
    dim, device = sums.log_sums.shape[1], sums.log_sums.device
    largest = sums.log_sums.new_full((), -torch.inf)
    for rows in chunks(dim, device):
        largest = torch.maximum(largest, mean_logs(sums, rows).max())
    largest = max_over_shards(largest)
    return largest.clamp(min=torch.finfo(largest.dtype).min)  # all rows may be 0
