"""How unevenly a gradient is spread over coordinates, from mergeable counts and sums."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.heterogeneity_sums import (
    DROPPED_BITS,
    FIRST_BIN,
    MANTISSA_BITS,
    NUM_BINS,
    HeterogeneitySums,
    heterogeneity_update,
    merge_tensors,
)

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
TOP_FRACTION = 0.01
_HISTOGRAM_BINS_PER_OCTAVE = 4  # of the coarser histogram that is logged: 0.06 to 0.1 in log10


class Heterogeneity(NamedTuple):
    """Statistics of |g| over finite entries. Shapes: (T,) per tensor, or () over all of them."""

    density: Tensor  # norm1^2 / (d norm2^2), in (0, 1]; 1 if all |g| are equal; NaN if all are 0
    gini: Tensor  # Gini coefficient, 0 if all |g| are equal, near 1 if one of many is not 0
    top_energy: Tensor  # share of norm2^2 in the largest 1 % of entries
    zero_fraction: Tensor  # exact zeros over finite entries
    num_inf: Tensor
    num_nan: Tensor
    log10_quantiles: Tensor  # (T, Q) or (Q,): of log10|g| over non-zero entries, at QUANTILES


def heterogeneity_compute(sums: HeterogeneitySums) -> Heterogeneity:
    """Turn the sums of T tensors into statistics of each, or merged ones into those of all."""
    # Most of the 8,864 bins are empty in all tensors and add nothing; bin 0 stays for the zeros.
    is_used = sums.histogram.reshape(-1, NUM_BINS).any(dim=0)
    is_used[0] = True
    used = is_used.nonzero().flatten()  # (U,)
    edges = _bin_edges(used)
    nonzero = sums.histogram[..., used].to(torch.float64)  # (..., U)
    num_finite = nonzero.sum(dim=-1)
    nonzero[..., 0] -= sums.num_zero
    centers = ((edges[1:] + edges[:-1]) / 2)[used]
    return Heterogeneity(
        density=sums.abs_sum.square() / (num_finite * sums.square_sum),
        gini=_gini(nonzero, centers, num_finite),
        top_energy=_top_energy(nonzero, centers, num_finite),
        zero_fraction=sums.num_zero / num_finite,
        num_inf=sums.num_inf,
        num_nan=sums.num_nan,
        log10_quantiles=_log10_quantiles(nonzero, edges.log10(), used),
    )


def each_and_whole(sums: HeterogeneitySums) -> tuple[Heterogeneity, Heterogeneity]:
    """Turn the sums of T tensors into statistics of each, and into those of all their entries."""
    rows = zip(sums, merge_tensors(sums), strict=True)
    both = heterogeneity_compute(HeterogeneitySums(*(torch.cat([s, m[None]]) for s, m in rows)))
    return Heterogeneity(*(v[:-1] for v in both)), Heterogeneity(*(v[-1] for v in both))


def log10_histogram(sums: HeterogeneitySums) -> tuple[Tensor, Tensor]:
    """Count non-zero finite entries by log10|g|, in four bins for each factor of 2.

    Args:
        sums: Those of one vector, as :func:`merge_tensors` gives them.

    Returns:
        Edges of log10|g| and counts, from the first bin with an entry to the last one; both empty
        if there are no entries. Shapes: (B + 1,), (B,).
    """
    counts = sums.histogram.clone()
    counts[0] -= sums.num_zero
    counts = counts.view(-1, 2**MANTISSA_BITS // _HISTOGRAM_BINS_PER_OCTAVE).sum(dim=1)
    edges = _bin_edges(counts).log10()[:: 2**MANTISSA_BITS // _HISTOGRAM_BINS_PER_OCTAVE]
    used = counts.nonzero().flatten().tolist()
    if not used:
        return edges[:0], counts[:0]
    return edges[used[0] : used[-1] + 2], counts[used[0] : used[-1] + 1]


def heterogeneity(gradient: Tensor) -> Heterogeneity:
    r"""Describe how unevenly the magnitude of a gradient is spread over its coordinates.

    Density is :math:`\|g\|_1^2 / (d \|g\|_2^2)`. If k of d coordinates are equally large and the
    others 0, it is k/d. It is also a ratio of decreases in one step, sign descent's over
    gradient descent's, where all coordinates are equally smooth.

    Args:
        gradient: Any shape, real floating dtype, d entries. Infinite and NaN entries are counted
            and left out of everything else.

    Returns:
        Scalars and, for :data:`QUANTILES`, a vector. Density and fractions are exact to rounding.
        The others come from a histogram with bins of relative width 1/32: quantiles are within
        0.0134 of log10|g|, Gini within 0.01 and the energy share within 0.02.

    Raises:
        ValueError: If the dtype is complex or integer.

    Source:
        Density: Bernstein et al., arXiv:1802.04434; Balles, Pedregosa & Le Roux, arXiv:2002.08056.
        Cost: one pass over the gradient where Triton's kernels run, else some ten passes over
        pieces of it that stay in a CPU's cache.

    Example:
        >>> result = heterogeneity(torch.tensor([3.0, 0.0, 4.0, 0.0]))
        >>> round(float(result.density), 4), float(result.zero_fraction)  # 49 / (4 * 25)
        (0.49, 0.5)
    """
    return heterogeneity_compute(merge_tensors(heterogeneity_update([gradient])))


def _bin_edges(like: Tensor) -> Tensor:
    """Give the lower edges of all bins and the upper edge of the last. Shape: (NUM_BINS + 1,)."""
    numbers = torch.arange(FIRST_BIN, FIRST_BIN + NUM_BINS + 1, device=like.device)
    return (numbers << DROPPED_BITS).view(torch.float64)


def _gini(nonzero: Tensor, centers: Tensor, num_finite: Tensor) -> Tensor:
    """Compute the sum over entries of (2 rank - d - 1) |g| / (d norm1), |g| at bin centers."""
    num_zero = num_finite - nonzero.sum(dim=-1)
    below = nonzero.cumsum(dim=-1) - nonzero + num_zero[..., None]  # entries in lower bins
    mass = nonzero * centers
    rank_term = 2 * below + nonzero - num_finite[..., None]  # mean of 2 rank - d - 1 in the bin
    return (mass * rank_term).sum(dim=-1) / (num_finite * mass.sum(dim=-1))


def _top_energy(nonzero: Tensor, centers: Tensor, num_finite: Tensor) -> Tensor:
    """Compute the share of the squared norm in the largest ceil(TOP_FRACTION d) entries."""
    num_top = (TOP_FRACTION * num_finite).ceil()[..., None]
    from_above = nonzero.flip(-1).cumsum(dim=-1).flip(-1) - nonzero  # entries in higher bins
    taken = (num_top - from_above).clamp(min=0.0).minimum(nonzero)
    energy = centers.square()
    return (taken * energy).sum(dim=-1) / (nonzero * energy).sum(dim=-1)


def _log10_quantiles(nonzero: Tensor, log_edges: Tensor, used: Tensor) -> Tensor:
    """Interpolate quantiles of log10|g| over non-zero entries as NumPy does; NaN if none is."""
    starts, widths = log_edges[used], log_edges.diff()[used]
    upto = nonzero.cumsum(dim=-1)  # (..., U)
    num_nonzero = upto[..., -1:]
    levels = torch.tensor(QUANTILES, dtype=nonzero.dtype, device=nonzero.device)
    target = (levels * (num_nonzero - 1)).clamp(min=0.0)

    def place(rank: Tensor) -> Tensor:
        """Find the log10|g| of the entries of 0-based ranks, as if evenly spread in their bin."""
        index = torch.searchsorted(upto, rank, right=True).clamp(max=len(used) - 1)
        inside = nonzero.gather(-1, index).clamp(min=1)
        position = (rank - upto.gather(-1, index) + inside + 0.5) / inside
        return starts[index] + position * widths[index]

    lower, upper = place(target.floor()), place(target.ceil())
    return torch.where(
        num_nonzero > 0, lower + (target - target.floor()) * (upper - lower), torch.nan
    )
