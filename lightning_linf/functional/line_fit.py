r"""What losses at a few multiples of a step say of the loss along it, each with its error.

A loss L(c) at the multiple c of a step D is L(theta + c D). Its derivatives are taken from
polynomials through a few points (finite-difference weights), so every estimate is, or is to first
order, a weighted sum :math:`\sum_i w_i L(c_i)`. With errors of the losses of covariance C its
variance is :math:`w^T C w`. C has two parts:

- Roughness: what rounding, in the precision of training, makes of a smooth loss. It is what a cubic
  polynomial leaves of the points near the step by least squares (of four: a parabola), with the few
  degrees of freedom that remain. What it leaves of a smooth loss counts as roughness, too.
- Of the choice of batches, if there are several: the covariance of the mean losses.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.line_search import critical_bracket, mean_slope, root_of_slopes

# A loss this many times further above the start than the lowest is below it tells nothing of what
# is near the step.
_WILD = 3.0
_NEAR = 2.0  # from multiple 1: points that tell the roughness; farther ones tell the shape
# Half of a 68 % interval of Student's t, by degrees of freedom.
_STUDENT = {1: 1.84, 2: 1.32, 3: 1.20}


class Estimate(NamedTuple):
    """A number, and its standard error: inf if that is unknown. Both NaN if there is none."""

    value: float
    error: float


_NONE = Estimate(math.nan, math.nan)


@dataclass(frozen=True)
class LineFit:
    """The loss along a step D from theta to theta', by its values."""

    change: Estimate  # L(1) - L(0)
    curvature: Estimate  # L''(1), which is D.HD at theta'
    lowest: Estimate  # multiple at which the loss is lowest; NaN if it still falls at the largest
    critical: Estimate  # largest multiple that lowers the loss; NaN if all that was tried do
    bracket: tuple[float, float]  # of the last one: what lowered the loss, and what did not
    roughness: float  # standard error of a loss, but for the choice of batches


def line_fit(
    losses: Mapping[float, float], covariance: Tensor | None = None, rounding: float = 0.0
) -> LineFit:
    """Fit the loss along a step.

    Args:
        losses: By multiple, 0, 1 and 2 among them. Those that are inf or NaN are left out of fits.
        covariance: Of the choice of batches, of the finite losses in the order of their multiples.
            Shape: (P, P). None: there is one batch.
        rounding: Least standard error of a loss, relative to it.
    """
    points = {c: losses[c] for c in sorted(losses) if math.isfinite(losses[c])}
    line = _Line(points, covariance, rounding)
    bracket = critical_bracket(losses)
    return LineFit(
        change=_change(line),
        curvature=_curvature(line),
        lowest=_lowest(line),
        critical=_critical(line, bracket),
        bracket=bracket,
        roughness=max(line.roughness, rounding * abs(losses[1.0])),
    )


def stencil(nodes: Sequence[float], at: float, order: int) -> Tensor:
    """Weights (n,) of values at ``nodes`` that give a derivative at a point, float64.

    Exact for polynomials of degree below n.
    """
    away = torch.tensor(nodes, dtype=torch.float64) - at
    powers = torch.stack([away**k for k in range(len(nodes))])  # (n, n)
    wanted = torch.zeros(len(nodes), dtype=torch.float64)
    wanted[order] = math.factorial(order)
    weights: Tensor = torch.linalg.solve(powers, wanted)
    return weights


class _Line:
    """Finite losses, in the order of multiples, and the covariance of their errors."""

    def __init__(
        self, points: Mapping[float, float], covariance: Tensor | None, rounding: float
    ) -> None:
        self.points = points
        self.nodes = list(points)
        self.tame = _tame(points)
        self._losses = torch.tensor(list(points.values()), dtype=torch.float64)
        count = len(self.nodes)
        zeros = torch.zeros(count, count, dtype=torch.float64)
        self.roughness = self._roughness()
        errors = (rounding * self._losses.abs()).clamp_min(self.roughness)
        self._covariance = errors.square().diag() + (zeros if covariance is None else covariance)

    def nearest(self, at: float, count: int) -> list[float]:
        """Give the nodes nearest to a multiple, but for those of wild losses."""
        return sorted(sorted(self.tame, key=lambda c: abs(c - at))[:count])

    def weights(self, nodes: Sequence[float], at: float, order: int) -> Tensor:
        """As :func:`stencil`, with zeros for all other nodes. Shape: (P,)."""
        row = torch.zeros(len(self.nodes), dtype=torch.float64)
        row[[self.nodes.index(c) for c in nodes]] = stencil(nodes, at, order)
        return row

    def value(self, weights: Tensor) -> float:
        return float(weights @ self._losses)

    def error(self, weights: Tensor) -> float:
        if not math.isfinite(self.roughness):
            return math.inf
        return math.sqrt(max(float(weights @ self._covariance @ weights), 0.0))

    def _roughness(self) -> float:
        count = max(4, sum(abs(c - 1) <= _NEAR for c in self.tame))
        near = self.nearest(1.0, count)
        if len(near) < 4:
            return math.inf
        chosen = [self.nodes.index(c) for c in near]
        away = torch.tensor(near, dtype=torch.float64) - 1
        degree = min(3, count - 2)
        powers = torch.stack([away**k for k in range(degree + 1)], dim=1)  # (n, degree + 1)
        basis, _ = torch.linalg.qr(powers / torch.linalg.vector_norm(powers, dim=0))
        values = self._losses[chosen] - self._losses[chosen].mean()
        left = values - basis @ (basis.T @ values)
        freedom = count - degree - 1
        scale = _STUDENT[min(freedom, max(_STUDENT))]
        return scale * float(torch.linalg.vector_norm(left)) / math.sqrt(freedom)


def _tame(points: Mapping[float, float]) -> list[float]:
    """Leave out nodes of losses far above the start, if enough others are there."""
    if 0.0 not in points:
        return list(points)
    most = _WILD * (points[0.0] - min(points.values()))
    tame = [c for c, loss in points.items() if loss - points[0.0] <= most or c in (0.0, 1.0)]
    return tame if len(tame) >= 4 else list(points)


def _change(line: _Line) -> Estimate:
    if 0.0 not in line.points or 1.0 not in line.points:
        return _NONE
    weights = line.weights([1.0], 1.0, 0) - line.weights([0.0], 0.0, 0)
    return Estimate(line.value(weights), line.error(weights))


def _curvature(line: _Line) -> Estimate:
    nodes = line.nearest(1.0, 3)
    if {0.0, 1.0, 2.0} <= set(line.tame):
        nodes = [0.0, 1.0, 2.0]  # evenly spaced, which spares the third derivative
    if len(nodes) < 3 or 1.0 not in nodes:
        return _NONE
    others = [c for c in line.nearest(1.0, len(line.tame)) if c not in nodes]
    others.sort(key=lambda c: abs(c - 1))
    weights = line.weights(nodes, 1.0, 2)
    finer = line.weights(sorted([*nodes, *others[:2]]), 1.0, 2)
    value = line.value(weights)
    return Estimate(value, math.hypot(line.error(weights), line.value(finer) - value))


def _lowest(line: _Line) -> Estimate:
    """Find the minimum of the parabola through the lowest point and its neighbours."""
    nodes = line.nodes
    if len(nodes) < 3:
        return _NONE
    place = min(range(len(nodes)), key=lambda i: line.points[nodes[i]])
    if place == len(nodes) - 1:
        return _NONE
    first = max(place - 1, 0)
    triple = nodes[first : first + 3]
    curvature = line.value(line.weights(triple, triple[1], 2))
    if not curvature > 0:  # at the start of the step, and it went uphill
        return _NONE
    lowest = triple[1] - line.value(line.weights(triple, triple[1], 1)) / curvature
    others = [c for c in nodes if c not in triple]
    cubic = sorted([*triple, *sorted(others, key=lambda c: abs(c - lowest))[:1]])
    left = line.value(line.weights(cubic, lowest, 1)) / curvature  # what the parabola does not see
    to_ends = max(lowest - triple[0], triple[2] - lowest)  # the minimum is between its neighbours
    noise = line.error(line.weights(triple, lowest, 1)) / curvature
    return Estimate(lowest, math.hypot(noise, min(abs(left), to_ends)))


def _critical(line: _Line, bracket: tuple[float, float]) -> Estimate:
    """Interpolate the mean slope between the ends of the bracket."""
    lower, upper = bracket
    if upper == math.inf:
        return _NONE
    if lower == 0 or upper not in line.points:
        return Estimate((lower + upper) / 2, (upper - lower) / 2)
    root = root_of_slopes(line.points, lower, upper)
    slopes = {c: mean_slope(line.points, c) for c in line.nodes if c > 0}
    growth = (slopes[upper] - slopes[lower]) / (upper - lower)
    others = [c for c in slopes if c not in (lower, upper)]
    nodes = sorted([lower, upper, *sorted(others, key=lambda c: abs(c - root))[:1]])
    values = torch.tensor([slopes[c] for c in nodes], dtype=torch.float64)
    left = float(stencil(nodes, root, 0) @ values) / growth  # what a parabola of slopes would add
    to_ends = max(root - lower, upper - root)
    # Of the loss at the root less that at the start; its slope there is root * growth.
    weights = torch.zeros(len(line.nodes), dtype=torch.float64)
    for end, share in zip((lower, upper), stencil([lower, upper], root, 0).tolist(), strict=True):
        weights[line.nodes.index(end)] = share * root / end
    weights[line.nodes.index(0.0)] = -float(weights.sum())
    noise = line.error(weights) / (root * growth)
    return Estimate(root, math.hypot(noise, min(abs(left), to_ends)))
