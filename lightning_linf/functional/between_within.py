"""How much of the spread of log|g| lies between the blocks of a partition, from mergeable sums."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks, wide_dtype

# A variance of log|g| below so many epsilons of its mean square is what rounding leaves of none.
NUM_EPSILONS = 1e3
NORMAL_LOG_VARIANCE = math.pi**2 / 8  # of log|g| for normal g of any variance
_ITS_DEVIATION = math.pi**2 * math.sqrt(3 / 32)  # of an estimate, times root of the entries


class BetweenWithinSums(NamedTuple):
    """Sums over the non-zero, finite entries in B blocks; those of shards add up to a whole's."""

    counts: Tensor  # (B,): entries
    log_sums: Tensor  # (B,): sum of log|g|
    log_square_sum: Tensor  # (): sum of (log|g|)^2 over all blocks


class BetweenWithin(NamedTuple):
    """Share of the spread of log|g| beyond chance that lies between blocks. Shapes: ()."""

    r_squared: Tensor  # in [0, 1]; NaN if there is no such spread, or all |g| are equal or 0
    adjusted: Tensor  # 0 on average for blocks at random; NaN also if blocks have one entry each


def between_within_update(gradient: Tensor, blocks: Blocks) -> BetweenWithinSums:
    """Sum ``log|g|`` over the blocks. Shape of ``gradient``: (d,)."""
    if gradient.shape != (blocks.num_params,):
        raise ValueError(
            f"between_within: expected `gradient` of shape ({blocks.num_params},), got "
            f"{tuple(gradient.shape)}. Pass the vector that the partition {blocks.name!r} divides."
        )
    if not gradient.is_floating_point():
        raise ValueError(
            f"between_within: expected a real floating gradient, got {gradient.dtype}. "
            "View complex gradients as real first (torch.view_as_real)."
        )
    magnitudes = gradient.detach().abs()
    counted = (magnitudes > 0) & magnitudes.isfinite()
    wide = wide_dtype(gradient)
    logs = torch.where(counted, magnitudes, 1.0).to(wide).log()  # what is left out adds 0
    return BetweenWithinSums(
        counts=blocks.block_sum(counted.to(wide)),
        log_sums=blocks.block_sum(logs),
        log_square_sum=logs.square().sum(),
    )


def between_within_compute(sums: BetweenWithinSums) -> BetweenWithin:
    """Turn sums into the plain and the adjusted share."""
    num_entries, num_blocks = sums.counts.sum(), (sums.counts > 0).sum()
    inside = num_entries - num_blocks
    center = sums.log_sums.sum().square() / num_entries
    total = sums.log_square_sum - center
    between = (sums.log_sums.square() / sums.counts.clamp(min=1)).sum() - center
    smallest = NUM_EPSILONS * torch.finfo(total.dtype).eps * sums.log_square_sum
    found = (total - between).clamp(min=0.0) / inside.clamp(min=1)
    chance = found.minimum(NORMAL_LOG_VARIANCE + 3 * _ITS_DEVIATION / inside.clamp(min=1).sqrt())
    beyond = total - (num_entries - 1) * chance
    share = ((between - (num_blocks - 1) * chance) / beyond).clamp(0.0, 1.0)
    share = torch.where(beyond > smallest, share, torch.nan)
    share = torch.where((num_blocks == 1) & (total > smallest), 0.0, share)
    adjusted = 1 - (1 - share) * (num_entries - 1) / inside
    return BetweenWithin(share, torch.where(inside > 0, adjusted, torch.nan))


def between_within(gradient: Tensor, blocks: Blocks) -> BetweenWithin:
    r"""Tell how much of the spread of log|g| lies between the blocks of a partition.

    This is :math:`R^2` of a one-way analysis of variance, without what chance alone would give.
    Near 1, second moments of a block are alike, and one per block loses little against one per
    entry; near 0, the blocks have nothing to do with magnitudes.

    Chance: even of equal second moments, log|g| has a variance c in every block. It is taken as the
    variance found within blocks, but not above :math:`\pi^2 / 8`, that of normal g, by more than
    three standard errors of its estimate. For each degree of freedom c is subtracted from both sums
    of squares: :math:`R^2 = (S_{between} - (B - 1) c) / (S_{total} - (n - 1) c)`, cut to [0, 1].
    If g has heavier tails than a normal one within a block of equal moments, :math:`R^2` is too
    low. Where there is hardly more spread than chance the share is rough. Blocks of one entry have
    :math:`R^2 = 1`, one block has 0.

    B blocks at random would have an :math:`R^2` of (B - 1)/(n - 1) on average over n entries, so
    finer partitions look better by chance: ``adjusted`` is
    :math:`1 - (1 - R^2) (n - 1)/(n - B)`, which is 0 on average for blocks at random.

    Args:
        gradient: Shape (d,), real floating dtype. Entries that are zero, infinite or NaN are left
            out, and so are blocks that have no others.
        blocks: A partition of the d coordinates.

    Returns:
        Both shares. Sums are float64 (float32 on MPS).

    Raises:
        ValueError: If the shape is not (d,), or the dtype is complex or integer.

    Source:
        Analysis of variance; the adjustment is Ezekiel's (1930). Variance of log|g|: a quarter of
        that of the logarithm of chi-squared with one degree of freedom. Cost: four passes over the
        gradient.

    Example:
        >>> class Halves:
        ...     name, num_params, num_blocks = "halves", 4, 2
        ...     block_sum = staticmethod(lambda values: values.unflatten(-1, (2, 2)).sum(-1))
        ...     expand = staticmethod(lambda values: values.repeat_interleave(2, dim=-1))
        ...     sizes = staticmethod(lambda like: like.new_tensor([2.0, 2.0]))
        >>> result = between_within(torch.tensor([1.0, 1.0, -5.0, 5.0]), Halves())
        >>> float(result.r_squared), float(result.adjusted)
        (1.0, 1.0)
    """
    return between_within_compute(between_within_update(gradient, blocks))
