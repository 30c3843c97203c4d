"""The numbers of one measurement, as plain dataclasses."""

import math
from dataclasses import dataclass

from lightning_linf.report.encoding import Scalar
from lightning_linf.report.interval import Interval, divide

_CONVERGED = 0.01  # 1 %: below what the brackets themselves leave open
_Z = 1.96  # standard errors in half of a 95 % interval
_LARGEST = 100.0  # relative error; more leaves everything open


@dataclass(frozen=True)
class BlockSmoothness:
    """Smoothness of one partition Phi, in loss per parameter squared, not divided by d.

    ``lower <= N(Phi) <= operator_upper`` and ``N(Phi) <= H(Phi) <= upper``, where N(Phi) is the
    norm of the Hessian from norm_Phi to dual_Phi and H(Phi) the blockwise smoothness. The adaptive
    smoothness Lambda(Phi) is at least N(Phi), with which it shares an upper end:
    ``adaptive_lower <= Lambda(Phi) <= operator_upper``.
    """

    num_blocks: int
    lower: float  # what one direction was found to reach, so it has no statistical error
    operator_upper: float  # from an eigenvalue; too low for 0.25 % of seeds at most
    upper: float  # of "coordinate" the (1,1)-norm itself, of the others a bound
    upper_relative_error: float  # standard error of `upper` over it; 0 where it is not an estimate
    lower_increase: float  # by how much the last iteration raised `lower`, relative
    operator_upper_residual: float  # by how much `operator_upper` exceeds that eigenvalue, relative
    num_hvps: int  # Hessian-vector products for this partition
    adaptive_lower: float = math.nan  # NaN in reports of versions that did not measure it

    @property
    def adaptive_upper(self) -> float:
        """Upper end of Lambda(Phi): S is at least H and -H in every certificate of N(Phi)."""
        return self.operator_upper

    @property
    def converged(self) -> bool:
        """Whether more products would move neither end of N(Phi) by more than about 1 %."""
        return self.lower_increase <= _CONVERGED and self.operator_upper_residual <= _CONVERGED


@dataclass(frozen=True)
class SpectralSmoothness:
    """Smoothness of the geometry of Muon, in loss per parameter squared, not divided by d.

    Its norm is the largest of singular values over sqrt(max(m, n)) of hidden matrices (m, n), and
    of magnitudes of the entries of other tensors. ``lower <= N <= operator_upper``.
    """

    num_matrices: int
    lower: float  # what one direction was found to reach
    operator_upper: float  # that of a partition into whole tensors, which has all of its steps
    lower_increase: float  # by how much the last product raised `lower`, relative
    num_hvps: int


@dataclass(frozen=True)
class NoiseReport:
    """Gradient noise of one sample, where the loss is a mean over samples."""

    num_microbatches: int
    weight: float  # number of samples in all microbatches together
    trace: float  # of the covariance of one sample's gradient
    trace_relative_error: float  # standard error
    noise_scale: float  # samples; inf if the mean gradient is not distinguishable from 0
    block_noise: dict[str, float]  # by partition, sum_b d_b sigma_b
    # By partition, both ends of its noise scale; None in records of versions that lack them.
    noise_scale_lower: dict[str, float] | None = None
    noise_scale_upper: dict[str, float] | None = None


@dataclass(frozen=True)
class Measurement:
    """The numbers of a :class:`GeometryReport`, and the ratios that follow by arithmetic alone."""

    num_params: int  # d
    loss: float
    density: float  # of the gradient: norm1(g)^2 / (d norm2(g)^2), in (0, 1]
    one_one_norm: float  # sum of |H_ij|, which is H(coordinate)
    one_one_norm_relative_error: float  # standard error of the probes alone
    lambda_max: float  # largest |eigenvalue|; d times it is N(global)
    lambda_max_relative_error: float  # of its upper end, too low for 0.25 % of seeds at most
    dual_norm: dict[str, float]  # by partition, dual_Phi(g) = sum_b sqrt(d_b) norm2(g_b)
    curvature: dict[str, float]  # by partition, v^T H v for v its steepest descent: at most N(Phi)
    smoothness: dict[str, BlockSmoothness]
    r_squared: dict[str, float]  # by partition, share of log|g|'s variance between blocks
    per_tensor: dict[str, dict[str, float]]  # name of a parameter tensor -> quantity -> value
    noise: NoiseReport | None
    secant: dict[str, float] | None  # by partition, smoothness along training's last step
    settings: dict[str, Scalar]  # what it was measured with
    num_hvps: int
    seconds: float
    # A mean of few batches has a larger (1,1)-norm than the data. This is by how much the mean of
    # half of them exceeds that of all, relative; what all exceed the data by is roughly 1 to 2.4
    # times as much, more if they are few (`functional/batch_excess.py`). None with one batch.
    one_one_norm_batch_excess: float | None = None
    # By partition, of `step_advantage`: what the choice of batches leaves open; 1.96 times it is
    # half a 95 % interval of its logarithm (`functional/step_error.py`). None with one batch.
    step_advantage_relative_error: dict[str, float] | None = None
    # Where it was measured, `dual_norm` and `curvature` have the key "spectral", too.
    spectral: SpectralSmoothness | None = None

    def __post_init__(self) -> None:
        if not self.smoothness.keys() >= {"coordinate", "global"}:
            raise ValueError(
                'GeometryReport: expected `smoothness` to have "coordinate" and "global", got '
                f"{list(self.smoothness)}. Measure these two beside other partitions."
            )
        measured = [*self.smoothness, *(["spectral"] if self.spectral is not None else [])]
        for name, values in (("dual_norm", self.dual_norm), ("curvature", self.curvature)):
            if values.keys() != set(measured):
                raise ValueError(
                    f"GeometryReport: expected `{name}` to have the partitions of `smoothness`, "
                    f"{measured}, got {list(values)}. Measure both for each."
                )

    @property
    def one_one_norm_per_param(self) -> float:
        """The (1,1)-norm over d, comparable with ``lambda_max``."""
        return divide(self.one_one_norm, self.num_params)

    @property
    def ratio(self) -> float:
        """How many times smoother the loss is along l-infinity: d lambda_max / (1,1)-norm."""
        return divide(self.lambda_max, self.one_one_norm_per_param)

    @property
    def decrease(self) -> dict[str, Interval]:
        """By partition, the decrease of the loss by a step that meets its largest curvature.

        Of the best step of steepest descent, to second order, in units of loss; the bracket is that
        of N(Phi). With a zero Hessian it is inf; with a zero gradient, too, NaN.
        """
        result = {}
        for name, block in self.smoothness.items():
            half = self.dual_norm[name] * self.dual_norm[name] / 2
            result[name] = Interval(divide(half, block.operator_upper), divide(half, block.lower))
        return result

    def decrease_over(self, base: str) -> dict[str, Interval]:
        """By partition, its ``decrease`` over that of ``base``, which itself has 1."""
        other = self.smoothness[base]
        result = {}
        for name, block in self.smoothness.items():
            dual = divide(self.dual_norm[name], self.dual_norm[base])
            result[name] = Interval(
                dual * dual * divide(other.lower, block.operator_upper),
                dual * dual * divide(other.operator_upper, block.lower),
            )
        return result | {base: Interval(1.0, 1.0)}

    @property
    def advantage(self) -> dict[str, Interval]:
        """By partition, its ``decrease`` over that of "global", the geometry of SGD.

        That of "coordinate" is Adam's. NaN for a zero gradient or a zero Hessian; an upper end of
        inf where only the lower end of N(Phi) is zero. "global" is 1 throughout.
        """
        return self.decrease_over("global")

    @property
    def step_advantage(self) -> dict[str, float]:
        """By partition, the decrease of its best step over that of "global", to second order.

        Where ``advantage`` assumes the worst curvature that a step of Phi can meet, this takes the
        one along the present gradient's own step: ``dual_Phi(g)^2 / (2 v^T H v)`` is what a line
        search would gain if the loss were quadratic. NaN where either curvature is not positive.
        """
        sgd = self.curvature["global"]
        result = {}
        for name, curvature in self.curvature.items():
            dual = divide(self.dual_norm[name], self.dual_norm["global"])
            both_curve_up = curvature > 0 and sgd > 0
            result[name] = dual * dual * sgd / curvature if both_curve_up else math.nan
        return result

    def step_error(self, partition: str) -> float:
        """Relative error of ``step_advantage``; NaN where the batches do not tell."""
        return (self.step_advantage_relative_error or {}).get(partition, math.nan)

    @property
    def step_advantage_interval(self) -> dict[str, Interval]:
        """By partition, a 95 % interval of ``step_advantage`` over the choice of batches.

        Its ends are NaN where the batches do not tell, and 0 and inf where they leave all open.
        """
        result = {}
        for name, value in self.step_advantage.items():
            factor = _factor(self.step_error(name))
            result[name] = Interval(divide(value, factor), value * factor)
        return result | {"global": Interval(1.0, 1.0)}

    def step_share(self, partition: str) -> Interval:
        """Bounds on the ``step_advantage`` of a partition over that of "coordinate".

        Both errors are added up, as they may be of one sign or of opposite ones.
        """
        if partition == "coordinate":
            return Interval(1.0, 1.0)
        advantage = self.step_advantage
        value = divide(advantage[partition], advantage["coordinate"])
        error = 0.0 if partition == "global" else self.step_error(partition)
        factor = _factor(error + self.step_error("coordinate"))
        return Interval(divide(value, factor), value * factor)


def _factor(relative_error: float) -> float:
    """Give what the half of a 95 % interval multiplies or divides by."""
    if not relative_error >= 0:
        return math.nan
    return math.exp(_Z * relative_error) if relative_error < _LARGEST else math.inf
