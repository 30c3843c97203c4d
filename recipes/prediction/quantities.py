"""What may predict the order of optimizers: numbers of one measurement, one for each geometry.

A further quantity is one more entry of `QUANTITIES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightning_linf import GeometryReport
from lightning_linf.report.measurement import BlockSmoothness, SpectralSmoothness


@dataclass(frozen=True)
class Reading:
    """A measurement in some coordinates, read for a partition or for "spectral"."""

    report: GeometryReport
    partition: str
    batch_size: int  # of training

    @property
    def dual(self) -> float:
        """The dual norm of the gradient."""
        return self.report.dual_norm[self.partition]

    def decrease(self, smoothness: float) -> float:
        """The decrease that the best step promises; without end where the loss curves down."""
        return math.inf if smoothness <= 0 else self.dual**2 / (2 * smoothness)

    @property
    def smoothness(self) -> BlockSmoothness | SpectralSmoothness:
        """Both ends of N, and what else is known of the geometry."""
        if self.partition != "spectral":
            return self.report.smoothness[self.partition]
        assert self.report.spectral is not None
        return self.report.spectral

    @property
    def noise_scale(self) -> float:
        """Samples at which noise and gradient have the same dual norm."""
        assert self.report.noise is not None
        noise = self.report.noise.block_noise.get(self.partition, math.nan)
        return (noise / self.dual) ** 2 if self.dual > 0 else math.inf


@dataclass(frozen=True)
class Quantity:
    """A number of a geometry, NaN where it is not measured.

    Args:
        name: In tables.
        meaning: A formula.
        larger_is_better: Whether optimizers are predicted to end lower where it is larger.
        read: Gives the number.
    """

    name: str
    meaning: str
    larger_is_better: bool
    read: Callable[[Reading], float]


def _secant(reading: Reading) -> float:
    secant = reading.report.secant
    return math.nan if secant is None else secant.get(reading.partition, math.nan)


def _of_smoothness(field: str) -> Callable[[Reading], float]:
    assert field in BlockSmoothness.__dataclass_fields__
    return lambda r: float(getattr(r.smoothness, field, math.nan))  # Muon's geometry has fewer


def _decrease_by(field: str) -> Callable[[Reading], float]:
    smoothness = _of_smoothness(field)
    return lambda r: r.decrease(smoothness(r))


QUANTITIES = (
    Quantity(
        "step_advantage", "dual(g)² / (2 vᵀHv)",
        True, lambda r: r.decrease(r.report.curvature[r.partition]),
    ),
    Quantity(
        "step_advantage, |curvature|", "step_advantage with |vᵀHv|", True,
        lambda r: r.decrease(abs(r.report.curvature[r.partition])),
    ),
    Quantity(
        "step_advantage in noise", "step_advantage / (1 + noise scale of Φ / batch size)", True,
        lambda r: (
            r.decrease(r.report.curvature[r.partition]) / (1 + r.noise_scale / r.batch_size)
        ),
    ),
    Quantity(
        "advantage, from below", "dual(g)² / (2 N), upper end of N", True,
        _decrease_by("operator_upper"),
    ),
    Quantity(
        "advantage, from above", "dual(g)² / (2 N), lower end of N", True, _decrease_by("lower"),
    ),
    Quantity("advantage by H", "dual(g)² / (2 H), upper end of H", True, _decrease_by("upper")),
    Quantity("N, lower end", "N(Φ)", False, _of_smoothness("lower")),
    Quantity(
        "N, upper end", "N(Φ), and the adaptive smoothness Λ(Φ), which has the same upper end",
        False, _of_smoothness("operator_upper"),
    ),
    Quantity("Λ, lower end", "Λ(Φ)", False, _of_smoothness("adaptive_lower")),
    Quantity(
        "advantage by Λ, from above", "dual(g)² / (2 Λ), lower end of Λ", True,
        _decrease_by("adaptive_lower"),
    ),
    Quantity("H, upper end", "H(Φ)", False, _of_smoothness("upper")),
    Quantity("curvature", "vᵀHv", False, lambda r: r.report.curvature[r.partition]),
    Quantity("secant", "smoothness along Adam's last step", False, _secant),
    Quantity("dual norm", "dual(g)", True, lambda r: r.dual),
    Quantity("noise scale", "noise scale of Φ, in samples", False, lambda r: r.noise_scale),
    Quantity(
        "R²", "share of the variance of log|g| between blocks", True,
        lambda r: r.report.r_squared.get(r.partition, math.nan),
    ),
)  # fmt: skip
