"""How much of the spread of log|g| lies between the blocks of a partition."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks, local_sums_of_blocks, require_vector
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.vector_shards import sum_over_shards

# A variance of log|g| below so many epsilons of its mean square is what rounding leaves of none.
NUM_EPSILONS = 1e3
NORMAL_LOG_VARIANCE = math.pi**2 / 8  # of log|g| for normal g of any variance
# Standard deviation of a sample variance of log|g|, times the root of the number of samples.
_DEVIATION_OF_VARIANCE = math.pi**2 * math.sqrt(3 / 32)


class BetweenWithin(NamedTuple):
    """What the spread of log|g| between blocks tells, against that within them."""

    r_squared: Tensor  # (): in [0, 1], float64 (float32 on MPS); NaN without spread beyond chance


def between_within(gradient: Tensor, blocks: Blocks) -> BetweenWithin:
    r"""Compute the share of the spread of log|g|, beyond chance, that lies between blocks.

    This is :math:`R^2` of a one-way analysis of variance, without what chance alone would give.
    Near 1, the entries of a block have similar second moments, and one second moment per block
    loses little against one per entry; near 0, the blocks have nothing to do with magnitudes.
    Blocks of one entry have :math:`R^2 = 1`, one block has 0.

    Chance: even if all entries of a block have the same second moment, their log|g| has a variance
    c. It is taken as the variance found within blocks, but not above :math:`\pi^2 / 8`, that of
    normal g, by more than three standard errors of its estimate. Over n entries in B blocks,
    :math:`R^2 = (S_{between} - (B - 1) c) / (S_{total} - (n - 1) c)`, cut to [0, 1]: each sum of
    squares loses c for each of its degrees of freedom. If g has heavier tails than a normal number
    within a block of equal moments, :math:`R^2` is too low. Where there is hardly more spread than
    chance it is rough, and blocks drawn at random have :math:`(B - 1) / (n - 1)` on average.

    Args:
        gradient: Shape (d,), real floating dtype. Entries that are zero, infinite or NaN are left
            out, and so are blocks that have no others.
        blocks: A partition of the d coordinates.

    Returns:
        :math:`R^2`, as the field ``r_squared``.

    Raises:
        ValueError: If the shape is not (d,), or the dtype is complex or integer.

    Source:
        Analysis of variance. Variance of log|g|: a quarter of that of the logarithm of chi-squared
        with one degree of freedom. Cost: four passes over the gradient.

    Example:
        >>> from lightning_linf.functional import LabelledBlocks
        >>> pairs = LabelledBlocks(torch.tensor([0, 0, 1, 1]))
        >>> float(between_within(torch.tensor([1.0, 1.0, -5.0, 5.0]), pairs).r_squared)
        1.0
    """
    require_vector("between_within", "gradient", gradient, blocks)
    if not gradient.is_floating_point():
        raise ValueError(
            f"between_within: expected a real floating gradient, got {gradient.dtype}. "
            "View complex gradients as real first (torch.view_as_real)."
        )
    gradient = gradient.detach()
    log_square_sum = sum_in_pieces(lambda part: _logs(part).square_(), gradient)
    # Labelled blocks may be as many as entries and yet have several, or none.
    if blocks.num_blocks == blocks.num_params and bool((blocks.sizes(gradient) == 1).all()):
        log_sum = sum_in_pieces(_logs, gradient)
        num_entries = sum_in_pieces(_is_counted, gradient)
        total = log_square_sum - log_sum.square() / num_entries
        one = torch.ones_like(total)
        return BetweenWithin(torch.where(_is_spread(total, log_square_sum), one, torch.nan))
    both = [local_sums_of_blocks(each, gradient, blocks) for each in (_is_counted, _logs)]
    counts, log_sums = sum_over_shards(torch.stack(both))  # (B,)

    num_entries, num_blocks = counts.sum(), (counts > 0).sum()
    inside = (num_entries - num_blocks).clamp(min=1)  # degrees of freedom within blocks
    center = log_sums.sum().square() / num_entries
    total = log_square_sum - center
    between = (log_sums.square() / counts.clamp(min=1)).sum() - center
    found = (total - between).clamp(min=0.0) / inside
    chance = found.minimum(NORMAL_LOG_VARIANCE + 3 * _DEVIATION_OF_VARIANCE / inside.sqrt())
    beyond = total - (num_entries - 1) * chance
    share = ((between - (num_blocks - 1) * chance) / beyond).clamp(0.0, 1.0)
    share = torch.where(_is_spread(beyond, log_square_sum), share, torch.nan)
    is_one_block = (num_blocks == 1) & _is_spread(total, log_square_sum)
    return BetweenWithin(torch.where(is_one_block, 0.0, share))


def _is_spread(variance: Tensor, log_square_sum: Tensor) -> Tensor:
    """Say whether a sum of squared deviations of log|g| is more than rounding leaves of none."""
    return variance > NUM_EPSILONS * torch.finfo(variance.dtype).eps * log_square_sum


def _logs(gradient: Tensor) -> Tensor:
    """Compute log|g|, and 0 where an entry is left out."""
    magnitudes = gradient.abs()
    return magnitudes.masked_fill_(_is_counted(gradient) == 0, 1.0).log_()


def _is_counted(gradient: Tensor) -> Tensor:
    """Say by 1 or 0 which entries are neither zero, infinite nor NaN."""
    return ((gradient != 0) & gradient.isfinite()).to(gradient.dtype)
