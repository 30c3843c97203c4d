"""A number known to lie between two ends, and a division that zeros do not stop."""

import math
from dataclasses import dataclass

_MOST_WIDE = 1_000


@dataclass(frozen=True)
class Interval:
    """A number known to lie between ``lower`` and ``upper``; NaN stands for an unknown end.

    Example:
        >>> print(Interval(3.14159, 4.6))
        3.14 to 4.6
        >>> 4 in Interval(3, 5)
        True
    """

    lower: float
    upper: float

    def __contains__(self, value: float) -> bool:
        return self.lower <= value <= self.upper

    def __str__(self) -> str:
        if self.lower == self.upper:
            return f"{self.lower:.3g}"
        return f"{self.lower:.3g} to {self.upper:.3g}"


def is_unknown(interval: Interval) -> bool:
    """Whether an end is NaN."""
    return math.isnan(interval.lower) or math.isnan(interval.upper)


def is_any_ratio(interval: Interval) -> bool:
    """Whether the interval of a ratio leaves all values open."""
    return is_unknown(interval) or (interval.lower == 0 and interval.upper == math.inf)


def of_ratio(interval: Interval) -> str:
    """Write the interval of a ratio; one that is wider than any use by what it leaves open."""
    if is_any_ratio(interval):
        return "unknown"
    if 0 < _MOST_WIDE * interval.lower < interval.upper:
        return f"unknown to a factor of {_MOST_WIDE:,}"
    return str(interval)


def divide(dividend: float, divisor: float) -> float:
    """Divide, with x/0 = inf (of the sign of x) and 0/0 = NaN instead of an exception."""
    if divisor != 0:
        return dividend / divisor
    return math.nan if dividend == 0 or math.isnan(dividend) else math.copysign(math.inf, dividend)
