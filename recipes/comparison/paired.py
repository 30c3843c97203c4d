"""Differences between two optimizers, paired by seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """The mean of differences by seed, and Student's 95 % interval of it.

    Runs of one seed share initial weights, data and its order, so that their difference has less
    chance in it than two means have. What rounding does differs from seed to seed, and so the
    interval includes it. It is that of one comparison: of twenty, one misses by chance.
    """

    mean: float
    lower: float
    upper: float

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.lower > 0 or self.upper < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.lower:+.3f} to {self.upper:+.3f})"


def paired(differences: Sequence[float]) -> Paired:
    """Give the mean of differences, one a seed; of one seed the interval is infinite.

    Source:
        Student's t of the mean of normal differences, with one degree of freedom less than seeds.
    """
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Paired(mean, -math.inf, math.inf)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(student.ppf((1 + _CONFIDENCE) / 2, len(differences) - 1)) * error
    return Paired(mean, mean - half, mean + half)
