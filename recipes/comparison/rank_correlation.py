"""Spearman's rank correlation, with an interval by resampling whole groups."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pair = tuple[float, float]
_NUM_RESAMPLES = 2000


def spearman(pairs: Sequence[Pair]) -> float:
    """Correlate the ranks of two quantities; NaN if one of them does not vary."""
    first, second = (_ranks(column) for column in zip(*pairs, strict=True))
    if not (np.ptp(first) and np.ptp(second)):
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def spearman_interval(groups: Sequence[Sequence[Pair]], seed: int = 0) -> tuple[float, float]:
    """Give the central 95 % of the correlations of resampled groups.

    Seeds of one optimizer are no independent optimizers, so a resample draws whole groups.

    Args:
        groups: The pairs of each optimizer.
        seed: Of the resampling.
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_NUM_RESAMPLES):
        drawn = generator.integers(len(groups), size=len(groups))
        rho = spearman([pair for i in drawn for pair in groups[i]])
        if not math.isnan(rho):  # all draws the same group of one seed
            found.append(rho)
    if not found:
        return math.nan, math.nan
    lower, upper = np.quantile(found, [0.025, 0.975])
    return float(lower), float(upper)


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Rank from 1; equal values share the mean of their ranks."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks
