"""An upper bound of the blockwise smoothness, from probes that are Cauchy between blocks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks
from lightning_linf.functional.control_variate import NUM_SURROGATES, corrected
from lightning_linf.functional.product_sums import (
    ProductSums,
    product_sums_of,
    require_every_probe,
)
from lightning_linf.functional.random import chunks, derive_seed, generator_on, normal


class BlockSmoothnessEstimate(NamedTuple):
    """An estimate of an upper bound of the blockwise smoothness of a matrix."""

    value: Tensor  # (): in loss per parameter squared
    relative_error: Tensor  # (): standard error over value
    block_parts: Tensor  # (B,): what the rows of each block add to the value
    tensor_parts: Tensor  # (T,): what the rows of each parameter tensor add to it


def block_cauchy(blocks: Blocks, *, seed: int, probe: int, like: Tensor) -> Tensor:
    r"""Draw a vector whose blocks are independent isotropic Cauchy vectors times ``sqrt(d_b)``.

    A block is ``sqrt(d_b) G / |g|`` with ``G`` (d_b,) and ``g`` (1,) standard normal, so its
    product with any fixed ``a`` is Cauchy with scale ``sqrt(d_b) norm2(a)``, exactly. With one
    entry per block all entries are independent standard Cauchy.

    Args:
        blocks: A partition of the d coordinates.
        seed: Seed of the whole set of probes.
        probe: Number of this probe in the set.
        like: A tensor with the dtype and device of the result.

    Returns:
        The vector, shape (d,); the same for the same arguments.
    """
    radii = blocks.sizes(like.new_empty(0)).sqrt()
    for index, part in chunks(blocks.num_blocks):
        size = part.stop - part.start
        radii[part] *= _inverse_normals(
            size, seed=seed, probe=probe, chunk=index, device=like.device
        ).to(like)
    direction = normal(
        blocks.num_params,
        seed=derive_seed("direction", seed, probe),
        dtype=like.dtype,
        device=like.device,
    )
    return direction.mul_(blocks.expand(radii))


def block_smoothness(
    products: Tensor, blocks: Blocks, *, seed: int, sizes: Sequence[int] | None = None
) -> BlockSmoothnessEstimate:
    r"""Estimate an upper bound of the blockwise smoothness :math:`H(\Phi)` of a matrix.

    The bound is :math:`\sum_b \sqrt{d_b} \|q_b\|_2` with
    :math:`q_i = \sum_c \sqrt{d_c} \|H_{i,c}\|_2`: the triangle inequality makes it at least
    :math:`H(\Phi)`, and if every block has one entry both are the (1,1)-norm. Each entry i of a
    product with a probe of :func:`block_cauchy` is Cauchy with scale ``q_i``.

    As in :func:`cross_fitted_one_one_norm`, most of the error that all rows share is divided out
    with surrogate rows of known norm. Here a surrogate has one number for each block, its norm
    there, and meets the block of the probe in a random direction. As far as the real rows do not
    follow the surrogates, the estimate is divided by the known mean of what surrogates show.

    Args:
        products: Rows ``H v``, row k for ``v = block_cauchy(blocks, seed=seed, probe=k, ...)``.
            Shape (n, d), ``n >= 4``.
        blocks: A partition of the d coordinates.
        seed: Seed of the probes.
        sizes: Number of entries of each parameter tensor, in order; one tensor if None.

    Returns:
        Value, relative standard error, and the parts of blocks and tensors.

    Raises:
        ValueError: If the shape is wrong, there are fewer than 4 products, or one is not finite.

    Source:
        Quantity: Xie, Mohamadi & Li, arXiv:2410.08198; the bound is ours. Cost: n Hessian-vector
        products and O(d) memory for any n. On a trained GPT-2 of 9,152 parameters the relative
        RMSE was 0.09 at n = 16 for rows and tensors; without surrogates 0.31 and 0.35.
    """
    if products.ndim != 2 or products.shape[1] != blocks.num_params:
        raise ValueError(
            f"block_smoothness: expected `products` of shape (n, {blocks.num_params}), "
            f"got {tuple(products.shape)}. Stack the n products H v."
        )
    sizes = [products.shape[1]] if sizes is None else sizes
    return block_smoothness_compute(product_sums_of(products, sizes), sizes, blocks, seed)


def block_smoothness_compute(
    sums: ProductSums, sizes: Sequence[int], blocks: Blocks, seed: int
) -> BlockSmoothnessEstimate:
    """Turn complete sums of the products with ``block_cauchy`` probes into the estimate."""
    require_every_probe(sums, "block_smoothness")
    logs = sums.log_sums.sum(dim=0) / len(sums.num_seen)
    largest = logs.max().clamp(min=torch.finfo(logs.dtype).min)  # all rows may be 0
    squares = (2 * (logs - largest)).exp()  # (d,): squares of q over the largest; a zero row's is 0
    block_sizes = blocks.sizes(squares)
    block_norms = blocks.block_sum(squares).sqrt()
    parts = block_sizes.sqrt() * block_norms  # (B,)
    total = parts.sum()
    if total == 0:  # the loss is locally linear
        return BlockSmoothnessEstimate(total, total, parts, total.new_zeros(len(sizes)))

    per_square = torch.where(block_norms == 0, 0.0, block_sizes.sqrt() / block_norms)
    row_parts = squares * blocks.expand(per_square)  # (d,), sum total
    tensor_parts = torch.stack([part.sum() for part in row_parts.split_with_sizes(list(sizes))])
    lone = float(parts[block_sizes == 1].sum() / total)  # share of the blocks of one entry

    def observed(means: Tensor) -> Tensor:
        # The same nonlinear mean as that of the rows: a sum, or within a block a root mean square.
        in_blocks = (2 * means).exp().mean(dim=-1).sqrt()
        return lone * means.exp().mean(dim=-1) + (1 - lone) * in_blocks

    correction = corrected(
        row_parts,
        sizes,
        sums.run_log_means,
        _surrogate_log_ratios(sums, blocks, seed),
        observed=observed,
        expected=lambda n: lone * _mean_of_lone(n) + (1 - lone) * _mean_in_block(n),
    )
    scale = largest.exp() / correction.divisor
    return BlockSmoothnessEstimate(
        value=total * scale,
        relative_error=correction.relative_error,
        block_parts=parts * scale,
        tensor_parts=tensor_parts * scale,
    )


def _mean_of_lone(num_probes: int) -> float:
    """Give the mean of the geometric mean of so many standard ``|Cauchy|`` numbers."""
    return float(math.cos(math.pi / (2 * num_probes)) ** -num_probes)


def _mean_in_block(num_probes: int) -> float:
    """Give the mean of the root mean square of such geometric means over the rows of one block.

    The rows meet each probe in ``|g| / |r|``, with a normal g of each row's own, because their
    directions differ, and one normal r for all of them, the radius of the probe's block.
    """
    n = num_probes
    return float(_normal_moment(2 / n) ** (n / 2) * _normal_moment(-1 / n) ** n)


def _normal_moment(power: float) -> float:
    """E |g|^power of a standard normal g."""
    return float(2 ** (power / 2) * math.gamma((1 + power) / 2) / math.pi**0.5)


def _inverse_normals(
    size: int, *, seed: int, probe: int, chunk: int, device: torch.device
) -> Tensor:
    """Draw ``1 / |g|`` for the blocks of one chunk, with g standard normal. Shape: (size,)."""
    # float64, because in float32 the smallest |g| of many blocks would lack digits.
    generator = generator_on(device, derive_seed("radius", seed, probe, chunk))
    normals = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float64)
    return normals.abs().clamp(min=1e-30).reciprocal()


def _surrogate_log_ratios(sums: ProductSums, blocks: Blocks, seed: int) -> Tensor:
    """Take the log of the product of m surrogate rows with n probes, over their scale. (m, n)."""
    num_probes = len(sums.num_seen)
    dtype, device = sums.log_sums.dtype, sums.log_sums.device
    halves = [range(0, num_probes, 2), range(1, num_probes, 2)]
    values = sums.log_sums.new_zeros(NUM_SURROGATES, num_probes)
    scales = sums.log_sums.new_zeros(NUM_SURROGATES, 2)
    roots = blocks.sizes(sums.log_sums).sqrt()
    for h, probes in enumerate(halves):
        # Weights from the other half, so that they and the probes are independent.
        log_norms = sums.log_sums[1 - h] / len(halves[1 - h])
        squares = (2 * (log_norms - log_norms.max())).exp()  # only ratios matter: no overflow
        weights = roots * blocks.block_sum(squares).sqrt()  # (B,)
        for index, part in chunks(blocks.num_blocks):
            size = part.stop - part.start
            generator = generator_on(device, derive_seed("surrogates", seed, h, index))
            rows = torch.empty(NUM_SURROGATES, size, dtype=dtype, device=generator.device)
            # Norms of the blocks of a row, spread as those of Hessians are: exponentially.
            rows = rows.exponential_(generator=generator).to(device) * weights[part]
            scales[:, h] += rows.sum(dim=1)
            for k in probes:
                radii = _inverse_normals(size, seed=seed, probe=k, chunk=index, device=device)
                # A vector of norm 1 in a random direction has a standard normal number as its
                # product with the normal vector G of the probe's block.
                meets = torch.randn(
                    rows.shape, generator=generator, dtype=dtype, device=generator.device
                )
                values[:, k] += (meets.to(device) * rows) @ radii.to(device, dtype)
    scale_of_probe = scales[:, torch.arange(num_probes, device=device) % 2]
    return (values / scale_of_probe).abs().log()
