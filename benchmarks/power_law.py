"""The exponent with which a cost grows, fitted to measurements."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Fit(NamedTuple):
    """A power law."""

    exponent: float
    error: float  # standard error of the exponent; NaN of fewer than three points
    last: float  # between the two largest sizes

    def __str__(self) -> str:
        return f"{self.exponent:.2f} +- {self.error:.2f} (last {self.last:.2f})"


def fit_power(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """Fit ``value = factor * size ** exponent`` by least squares of the logarithms."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    dx, dy = x - x.mean(), y - y.mean()
    exponent = float(dx @ dy / (dx @ dx))
    residuals = dy - exponent * dx
    error = math.nan
    if len(x) > 2:
        error = float((residuals @ residuals / (len(x) - 2) / (dx @ dx)).sqrt())
    return Fit(exponent, error, float((y[-1] - y[-2]) / (x[-1] - x[-2])))
