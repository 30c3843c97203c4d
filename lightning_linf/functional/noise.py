"""Gradient noise from the gradients of microbatches, in memory that does not grow with them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks, wide_dtype


class NoiseSums(NamedTuple):
    """What is kept of the gradients ``g_k`` of microbatches of ``w_k`` samples each.

    With ``W`` and ``m`` the weight and the weighted mean of all before, microbatch k gives the
    contrast ``z_k = sqrt(w_k W / (W + w_k)) (g_k - m)``. If ``Var(g_k) = Sigma / w_k``, each
    contrast has mean 0 and variance ``Sigma`` for any weights, and no two are correlated.
    """

    weight: Tensor  # (): samples seen
    mean: Tensor  # (d,): weighted mean of the gradients, over `scale`
    squares: Tensor  # (2, d): sums of z_k^2 over `scale`^2, every other k in each half
    counts: Tensor  # (2,) int64: contrasts in each half
    norm_moments: Tensor  # (3,): number, sum and sum of squares of ||z_k||^2
    scale: Tensor  # (): a power of 2 near the largest entry, so that squares stay in range; 0 unset


class Noise(NamedTuple):
    """Gradient noise per sample. Sigma is the covariance of one sample's gradient, G its mean."""

    trace: Tensor  # (): tr Sigma, unbiased
    trace_relative_error: Tensor  # (): standard error over value; NaN for 2 microbatches
    noise_scale: Tensor  # (): tr Sigma / ||G||^2, in samples; inf if noise hides G
    block_noise: dict[str, Tensor]  # (): by partition, sum_b d_b sigma_b
    tensor_trace: Tensor  # (T,): each tensor's part of trace
    tensor_signal_to_noise: Tensor  # (T,): ||G||^2 over the variance of the mean of all samples


def noise_init(dim: int, like: Tensor) -> NoiseSums:
    """Make empty sums for gradients of ``dim`` entries.

    Args:
        dim: Number of entries d.
        like: A tensor with the device and dtype of the gradients; sums are float32 or wider.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return NoiseSums(
        weight=like.new_zeros((), dtype=wide_dtype(like)),
        mean=like.new_zeros(dim, dtype=dtype),
        squares=like.new_zeros(2, dim, dtype=dtype),
        counts=like.new_zeros(2, dtype=torch.int64),
        norm_moments=like.new_zeros(3, dtype=wide_dtype(like)),
        scale=like.new_zeros((), dtype=wide_dtype(like)),
    )


def noise_update(sums: NoiseSums, gradient: Tensor, weight: float) -> None:
    """Add, in place, a microbatch: its mean gradient (d,) and how many samples it is a mean of."""
    noise_count(sums, noise_add(sums, gradient, weight))


def noise_count(sums: NoiseSums, norm: Tensor | None) -> None:
    """Add, in place, the squared norm of a whole contrast to the moments of all."""
    if norm is not None:
        sums.norm_moments.add_(torch.stack([torch.ones_like(norm), norm, norm.square()]))


def noise_add(sums: NoiseSums, gradient: Tensor, weight: float) -> Tensor | None:
    """Add, in place, a microbatch to all but ``norm_moments``.

    Args:
        sums: Of those before it.
        gradient: Its mean gradient (d,), or the entries that this rank has of it.
        weight: How many samples that is a mean of.

    Returns:
        The squared norm of these entries of the contrast, (), or None for the first microbatch.
    """
    if gradient.shape != sums.mean.shape:
        raise ValueError(
            f"noise: expected a gradient of shape {tuple(sums.mean.shape)}, got "
            f"{tuple(gradient.shape)}. Flatten and concatenate those of all parameters."
        )
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(
            f"noise: expected `weight` > 0, the number of samples in the microbatch, got {weight}."
        )
    if not gradient.isfinite().all():
        raise ValueError(
            "noise: expected a finite gradient, got inf or NaN. Look at the loss and the "
            "parameters at this point."
        )
    before = float(sums.weight)
    sums.weight.add_(weight)
    gradient = gradient.detach().to(sums.mean.dtype)
    if not sums.scale > 0 and gradient.any():  # all before were zero
        sums.scale.copy_(_power_of_two(torch.linalg.vector_norm(gradient, math.inf).to(sums.scale)))
    scale = float(sums.scale) or 1.0
    difference = (gradient / scale).sub_(sums.mean)
    if before == 0.0:
        sums.mean.copy_(difference)
        return None
    sums.mean.add_(difference, alpha=weight / (before + weight))
    square = difference.mul_(math.sqrt(weight * before / (before + weight))).square_()
    half = int(sums.counts.sum()) % 2
    sums.squares[half] += square
    sums.counts[half] += 1
    return square.sum(dtype=sums.norm_moments.dtype) * scale * scale


def noise_merge(
    sums: NoiseSums, reduce: Callable[[Tensor], Tensor], spare: Tensor | None = None
) -> NoiseSums:
    """Merge the sums of all ranks; every rank gets the same.

    The means of R ranks differ by noise, too: ``sum_r W_r (m_r - m)^2`` are R - 1 further contrasts
    (Chan, Golub & LeVeque 1979). As they are known by their sum only, they go to one half, the one
    with fewer contrasts, and to the moments of norms as R numbers
    ``W_r ||m_r - m||^2 R / (R - 1)``, each of which has the mean of a contrast's. Mean and the sum
    of both halves equal those of one process that saw all microbatches; how contrasts fall into
    halves, and the moments, do not.

    Args:
        sums: Those of this rank, which may have seen nothing. Their tensors are used up.
        reduce: Returns the sum over ranks of a tensor, on all of them, perhaps in place. Called
            with 3 d numbers in all and some scalars.
        spare: A tensor like ``sums.mean`` to work in, so that no memory is asked for between
            reductions.
    """
    spare = torch.empty_like(sums.mean) if spare is None else spare
    wide = sums.norm_moments.dtype
    weight = reduce(sums.weight.clone())
    num_ranks = reduce((sums.weight > 0).to(torch.int64))
    counts = reduce(sums.counts.clone())
    scale = _power_of_two(reduce(sums.scale.clone()))
    rescale = (sums.scale / scale).to(spare.dtype)  # 0 where all were zero
    sums.mean.mul_(rescale)
    sums.squares.mul_(rescale**2)
    share = (sums.weight / weight).nan_to_num(0.0).to(spare.dtype)
    mean = reduce(torch.mul(sums.mean, share, out=spare))
    between = sums.mean.sub_(mean).square_().mul_(sums.weight.to(spare.dtype))
    half = int(counts.argmin())
    sums.squares[half] += between
    counts[half] += (num_ranks - 1).clamp(min=0)
    moments = sums.norm_moments.clone()
    if num_ranks > 1 and sums.weight > 0:
        norm = between.sum(dtype=wide) * scale.square() * num_ranks / (num_ranks - 1)
        moments += torch.stack([torch.ones_like(norm), norm, norm.square()])
    return NoiseSums(weight, mean, reduce(sums.squares), counts, reduce(moments), scale)


def noise_compute(
    sums: NoiseSums,
    sizes: Sequence[int],
    partitions: Mapping[str, Blocks],
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Noise:
    """Turn sums into the noise of T tensors with ``sizes`` entries, and of each partition.

    Args:
        sums: Of all microbatches; of shards, those of the entries that this rank has.
        sizes: How many entries of each tensor there are in them.
        partitions: Of the whole. ``block_sum`` gets the entries that there are.
        reduce: Adds up a tensor over the ranks that have the other entries.
    """
    total = reduce if reduce is not None else _same
    for blocks in () if reduce is not None else partitions.values():
        if blocks.num_params != len(sums.mean):
            raise ValueError(
                f"noise: expected partitions of {len(sums.mean)} coordinates, got {blocks.name!r} "
                f"of {blocks.num_params}. Make them of the same parameters."
            )
    num_contrasts = int(sums.counts.sum())
    if num_contrasts < 1:
        raise ValueError(
            f"noise: expected at least 2 microbatches, got {int(sums.weight > 0)}. "
            "The noise is in how their gradients differ."
        )
    if sum(sizes) != len(sums.mean):
        raise ValueError(
            f"noise: expected `sizes` that add up to {len(sums.mean)}, got {sum(sizes)}."
        )
    wide = sums.norm_moments.dtype
    variances = sums.squares.sum(dim=0) / num_contrasts
    unit = sums.scale.square()
    tensor_trace = total(_sums_of_parts(variances, sizes, wide) * unit)
    trace = tensor_trace.sum()
    mean_trace = tensor_trace / sums.weight  # of the covariance of the mean of all samples
    # E||mean||^2 = ||G||^2 + tr Sigma / W: what is left estimates ||G||^2 without bias.
    tensor_square = _sums_of_parts(sums.mean, sizes, wide, square=True) * unit
    tensor_signal = total(tensor_square) - mean_trace
    signal = tensor_signal.sum()
    number, norm_sum, norm_square_sum = sums.norm_moments
    norm_variance = (norm_square_sum - norm_sum.square() / number) / (number - 1)
    return Noise(
        trace=trace,
        trace_relative_error=(norm_variance.clamp(min=0.0) / num_contrasts).sqrt() / trace,
        noise_scale=torch.where(signal > 0, trace / signal, torch.inf),
        block_noise={n: _block_noise(sums, blocks, total) for n, blocks in partitions.items()},
        tensor_trace=tensor_trace,
        tensor_signal_to_noise=tensor_signal.clamp(min=0.0) / mean_trace,
    )


def noise(
    gradients: Tensor,
    weights: Sequence[float] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    partitions: Mapping[str, Blocks] | None = None,
) -> Noise:
    r"""Estimate the noise of one sample's gradient from the mean gradients of microbatches.

    With :math:`\Sigma` the covariance of one sample's gradient and G its mean: ``trace`` is
    :math:`\mathrm{tr}\,\Sigma`; ``noise_scale`` is :math:`\mathrm{tr}\,\Sigma / \|G\|^2`, the batch
    size at which noise equals signal; ``block_noise`` is :math:`\sum_b d_b \sigma_b` with
    :math:`\sigma_b^2` the mean of :math:`\Sigma_{ii}` over block b, which is the
    :func:`dual_block_norm` of the standard deviations: :math:`\sum_i \sigma_i` for one entry per
    block, :math:`\sqrt{d}\,\|\sigma\|_2` for one block.

    ``trace``, ``tensor_trace`` and the :math:`\|G\|^2` inside ratios are unbiased. The root of an
    unbiased variance is too small by about 1/(4n) of itself at n contrasts; with a and b contrasts
    in the two halves, ``2 D(all) - (a D(half 1) + b D(half 2)) / (a + b)`` has no such term. What
    is left for one entry per block was 0.2 % at 12 microbatches and 2 % at 4, where ``D(all)`` is
    2.5 % and 8 % too small (4 samples each, a small tanh network). With 2 microbatches a half is
    empty, and ``block_noise`` is ``D(all)``, about a fifth too small.

    Args:
        gradients: Mean gradient of each of K >= 2 microbatches at the same parameters. Shape
            (K, d). The variance of each must be that of one sample over its number of samples:
            samples are independent, and do not mix inside a microbatch as BatchNorm would have it.
        weights: Number of samples in each microbatch, length K; equal if None.
        sizes: Number of entries of each parameter tensor, in order; one tensor if None.
        partitions: Partitions of the d coordinates by name; none if None.

    Returns:
        The noise per sample. ``trace_relative_error`` takes contrasts as independent, as they are
        for normal gradients, and is itself rough for few microbatches. In float32, standard
        deviations below 1e-19 of the first gradient's largest entry count as 0.

    Raises:
        ValueError: If there are fewer than 2 microbatches, or shapes or lengths do not agree, or
            a weight is not positive, or a gradient is not finite.

    Source:
        Noise scale: McCandlish et al., arXiv:1812.06162, who compare two batch sizes; here all
        contrasts between microbatches are used. Sums: West, CACM 22 (1979). sum_b d_b sigma_b:
        Xie, Mohamadi & Li, arXiv:2410.08198. Cost: 3 d numbers of memory for any K.

    Example:
        >>> result = noise(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> round(float(result.trace), 4), round(float(result.noise_scale), 4)  # 2 / (8 - 2 / 2)
        (2.0, 0.2857)
    """
    if gradients.ndim != 2:
        raise ValueError(
            f"noise: expected `gradients` of shape (K, d), got {tuple(gradients.shape)}. "
            "Stack the K gradients."
        )
    num_microbatches, dim = gradients.shape
    weights = [1.0] * num_microbatches if weights is None else weights
    if len(weights) != num_microbatches:
        raise ValueError(
            f"noise: expected a weight for each of {num_microbatches} microbatches, got "
            f"{len(weights)} `weights`."
        )
    sums = noise_init(dim, gradients)
    for gradient, weight in zip(gradients, weights, strict=True):
        noise_update(sums, gradient, float(weight))
    return noise_compute(sums, [dim] if sizes is None else sizes, partitions or {})


def _block_noise(sums: NoiseSums, blocks: Blocks, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of d_b sigma_b, without the term of its bias in one over the number of contrasts."""
    counts: list[int] = sums.counts.tolist()
    num = sum(counts)
    whole = _sum_of_deviations(sums.squares.sum(dim=0) / num, sums.scale, blocks, total)
    if 0 in counts:
        return whole
    # E D(n contrasts) = D - c/n + ...; the halves' mean has (a c/a + b c/b) / (a + b) = 2 c/(a + b)
    halves = [
        count / num * _sum_of_deviations(squares / count, sums.scale, blocks, total)
        for count, squares in zip(counts, sums.squares, strict=True)
    ]
    return 2 * whole - halves[0] - halves[1]


def _sum_of_deviations(
    variances: Tensor, scale: Tensor, blocks: Blocks, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum of d_b sigma_b, which is the dual norm of the entries' standard deviations."""
    wide = wide_dtype(variances)
    if blocks.num_blocks == blocks.num_params:
        return total(variances.sqrt().sum(dtype=wide) * scale)
    sums = total(blocks.block_sum(variances.to(wide)) * scale.square())
    return (blocks.sizes(sums) * sums).sqrt().sum()


def _power_of_two(value: Tensor) -> Tensor:
    """Round to a power of 2, by which a division is exact; 0 becomes 1."""
    exponent = torch.frexp(torch.where(value > 0, value, 1.0)).exponent
    return torch.ldexp(torch.ones_like(value), exponent)


def _same(values: Tensor) -> Tensor:
    return values


def _sums_of_parts(
    values: Tensor, sizes: Sequence[int], dtype: torch.dtype, *, square: bool = False
) -> Tensor:
    """Sum of the values, or of their squares, in each tensor. Shapes: (d,) -> (T,)."""
    parts = values.split_with_sizes(list(sizes))
    return torch.stack([(p.square() if square else p).sum(dtype=dtype) for p in parts])
