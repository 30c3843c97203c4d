"""The noise of one sample's gradient, from the gradients of microbatches."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks, local_sums_of_blocks
from lightning_linf.functional.in_pieces import local_sum_in_pieces
from lightning_linf.functional.noise_sums import NoiseSums, noise_init, noise_update
from lightning_linf.functional.vector_shards import num_entries, sizes_here, sum_over_shards


class NoiseEstimate(NamedTuple):
    """Gradient noise per sample. Sigma is the covariance of one sample's gradient, G its mean."""

    trace: Tensor  # (): tr Sigma, unbiased
    trace_relative_error: Tensor  # (): standard error over value; NaN for 2 microbatches
    noise_scale: Tensor  # (): tr Sigma / ||G||^2, in samples; inf if noise hides G
    block_noise: dict[str, Tensor]  # (): by partition, sum_b d_b sigma_b
    # (): by partition, lower and upper end of (sum_b d_b sigma_b / ||G||_Phi*)^2, in samples
    block_noise_scale: dict[str, tuple[Tensor, Tensor]]
    tensor_trace: Tensor  # (T,): each tensor's part of trace
    tensor_signal_to_noise: Tensor  # (T,): ||G||^2 over the variance of the mean of all samples


def noise(
    gradients: Tensor,
    weights: Sequence[float] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    partitions: Mapping[str, Blocks] | None = None,
) -> NoiseEstimate:
    r"""Estimate the noise of one sample's gradient from the mean gradients of microbatches.

    With :math:`\Sigma` the covariance of one sample's gradient and G its mean, ``trace`` is
    :math:`\mathrm{tr}\,\Sigma`, and ``noise_scale`` is :math:`\mathrm{tr}\,\Sigma / \|G\|^2`, the
    batch size at which noise equals signal. ``block_noise`` is :math:`\sum_b d_b \sigma_b`, where
    :math:`\sigma_b^2` is the mean of :math:`\Sigma_{ii}` over block b. It is the
    :func:`dual_block_norm` of the standard deviations: :math:`\sum_i \sigma_i` for one entry per
    block, :math:`\sqrt{d}\,\|\sigma\|_2` for one block.

    ``trace``, ``tensor_trace`` and the :math:`\|G\|^2` inside ratios are unbiased.
    ``block_noise`` needs roots of variances, and the root of an unbiased variance from n contrasts
    is too small by about 1/(4n) of itself. Let D be the sum above from a set of contrasts. Computed
    from all of them and from two halves of a and b contrasts,
    ``2 D(all) - (a D(half 1) + b D(half 2)) / (a + b)`` has no error of that order. What was left
    of it, for one entry per block, was 0.2 % at 12 microbatches and 2 % at 4, where ``D(all)`` is
    2.5 % and 8 % too small (4 samples each, a small tanh network). With 2 microbatches a half is
    empty, and ``block_noise`` is ``D(all)``, about a fifth too small.

    ``block_noise_scale`` brackets the noise scale of the partition's geometry,
    :math:`(\sum_b d_b \sigma_b / \|G\|_{\Phi*})^2`: the batch size at which noise equals signal for
    steepest descent in its norm, sign descent for one entry per block. No estimate of
    :math:`\|G\|_{\Phi*}` is unbiased where noise hides entries, but two bracket it in expectation:
    the dual norm of the mean of all microbatches, which noise makes larger, and, from the means of
    two halves, the part of one half's along the steepest descent of the other's, which is
    :math:`\langle u, G \rangle` in expectation for some u of norm 1. The ends meet as the number of
    samples grows beyond the noise scale.

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
        Xie, Mohamadi & Li, arXiv:2410.08198. Noise scale of sign descent: Naganuma et al.,
        arXiv:2602.03001, who take the dual norm of the mean. Cost: 4 d numbers of memory for any K.

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


def noise_compute(
    sums: NoiseSums,
    sizes: Sequence[int],
    partitions: Mapping[str, Blocks],
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> NoiseEstimate:
    """Turn the sums of all microbatches into the noise of T tensors, and of each partition.

    Args:
        sums: Those of all d entries, or with ``reduce`` those of the entries that this rank has.
        sizes: How many of the entries in ``sums`` belong to each tensor, or where vectors are
            shards (:func:`~lightning_linf.functional.vector_shards.sharing_vectors`), how many each
            has in all. Length T.
        partitions: Partitions of all d coordinates, by name. With ``reduce``, their ``pieces`` are
            those of the entries of this rank alone.
        reduce: Adds up a tensor over the ranks that share out the entries; None: there is one, or
            vectors are shards.
    """
    total, sizes = reduce or sum_over_shards, sizes_here(sizes)
    for blocks in () if reduce is not None else partitions.values():
        if blocks.num_params != num_entries(sums.mean):
            raise ValueError(
                f"noise: expected partitions of {num_entries(sums.mean)} coordinates, got "
                f"{blocks.name!r} of {blocks.num_params}. Make them of the same parameters."
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
    unit = sums.scale.square()
    halves = [_sums_of_parts(squares, sizes) for squares in sums.squares]
    tensor_trace = total((halves[0] + halves[1]) / num_contrasts * unit)
    trace = tensor_trace.sum()
    mean_trace = tensor_trace / sums.weight  # of the covariance of the mean of all samples
    # E||mean||^2 = ||G||^2 + tr Sigma / W: what is left estimates ||G||^2 without bias.
    tensor_square = _sums_of_parts(sums.mean, sizes, torch.square) * unit
    tensor_signal = total(tensor_square) - mean_trace
    signal = tensor_signal.sum()
    number, norm_sum, norm_square_sum = sums.norm_moments
    norm_variance = (norm_square_sum - norm_sum.square() / number) / (number - 1)
    block_noise = {n: _block_noise(sums, blocks, total) for n, blocks in partitions.items()}
    return NoiseEstimate(
        trace=trace,
        trace_relative_error=(norm_variance.clamp(min=0.0) / num_contrasts).sqrt() / trace,
        noise_scale=torch.where(signal > 0, trace / signal, torch.inf),
        block_noise=block_noise,
        block_noise_scale={
            name: _scale_ends(block_noise[name], *_dual_norm_ends(sums, blocks, total))
            for name, blocks in partitions.items()
        },
        tensor_trace=tensor_trace,
        tensor_signal_to_noise=tensor_signal.clamp(min=0.0) / mean_trace,
    )


def _block_noise(sums: NoiseSums, blocks: Blocks, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the sum of d_b sigma_b, without the bias of order one over the contrasts. ()."""
    counts: list[int] = sums.counts.tolist()
    num = sum(counts)
    has_blocks = blocks.num_blocks < blocks.num_params
    squares = sums.squares.unbind()  # of the contrasts in each half: (d,), and then (B,)
    if has_blocks:
        squares = tuple(local_sums_of_blocks(_unchanged, each, blocks) for each in squares)

    def deviations(count: int, *parts: Tensor) -> Tensor:
        """Compute the sum from these parts of the squares, of ``count`` contrasts. ()."""
        if has_blocks:
            block_sums = total(functools.reduce(torch.add, parts) / count * sums.scale.square())
            return (blocks.sizes(block_sums) * block_sums).sqrt().sum()

        def roots(*pieces: Tensor) -> Tensor:
            return (functools.reduce(torch.add, pieces) / count).sqrt_()

        return total(local_sum_in_pieces(roots, *parts) * sums.scale)

    whole = deviations(num, *squares)
    if 0 in counts:
        return whole
    # E D(n contrasts) = D - c/n + ... for some c, so D(all) lacks c/(a + b), and the weighted mean
    # of the halves (a c/a + b c/b) / (a + b) = 2 c/(a + b), which is twice as much.
    halves = [
        count / num * deviations(count, half) for count, half in zip(counts, squares, strict=True)
    ]
    return 2 * whole - halves[0] - halves[1]


def _dual_norm_ends(
    sums: NoiseSums, blocks: Blocks, total: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Give what is at most, and what is at least, the dual norm of G in expectation. Each ()."""
    share = float(sums.first_weight / sums.weight)
    if share == 1:  # no rank has had a second half, of which nothing is known then
        sums = sums._replace(first_mean=torch.zeros_like(sums.mean))
        share = 0.0
    pair = sums.mean, sums.first_mean

    def second_of(mean: Tensor, first: Tensor) -> Tensor:
        """Compute the mean of the other half."""
        return (mean - share * first) / (1 - share)

    if blocks.num_blocks == blocks.num_params:

        def across(mean: Tensor, first: Tensor) -> Tensor:
            second = second_of(mean, first)
            return (first.sign() * second + second.sign() * first) / 2

        lower = local_sum_in_pieces(across, *pair)
        upper = local_sum_in_pieces(torch.abs, sums.mean)
        ends = total(torch.stack([lower, upper]) * sums.scale)
        return ends[0], ends[1]

    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda mean, first: first * second_of(mean, first),
        lambda mean, first: first.square(),
        lambda mean, first: second_of(mean, first).square(),
        lambda mean, first: mean.square(),
    ]
    parts = [local_sums_of_blocks(each, sums.mean, blocks, sums.first_mean) for each in functions]
    # Each rank has a scale of its own.
    dots, firsts, seconds, means = total(torch.stack(parts) * sums.scale.square())
    roots = blocks.sizes(dots).sqrt()
    along = (dots / firsts.sqrt()).nan_to_num(0.0) + (dots / seconds.sqrt()).nan_to_num(0.0)
    return (roots * along).sum() / 2, (roots * means.sqrt()).sum()


def _scale_ends(block_noise: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both ends of a noise scale from those of the dual norm; inf where that is not > 0."""
    ends = (torch.where(n > 0, (block_noise / n).square(), torch.inf) for n in (upper, lower))
    return next(ends), next(ends)


def _sums_of_parts(
    values: Tensor, sizes: Sequence[int], function: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Add up the values, or a function of them, in each tensor. Shapes: (d,) -> (T,)."""
    parts = values.split_with_sizes(list(sizes))
    return torch.stack([local_sum_in_pieces(function or _unchanged, part) for part in parts])


def _unchanged(values: Tensor) -> Tensor:
    return values
