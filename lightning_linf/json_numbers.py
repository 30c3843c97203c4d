"""Inf and NaN in JSON, which has no such numbers: strings stand for them.

All files and all answers to the panels spell them alike.
"""

import math

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: float) -> float | str:
    """Give a finite number as it is, and the name in ``NON_FINITE`` of any other."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
