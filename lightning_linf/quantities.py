"""Everything that is logged or recorded: its tag, its unit, who measures it and what it means.

Callbacks, TensorBoard's layout, the panels and ``docs/quantities.md`` read this list. To add a
quantity, add one constant here and compute its value in a monitor.

The meanings use these letters: d is the number of trainable parameters, g the gradient and H the
Hessian of the mean loss. In a row of a table, d and g belong to its tensor alone.
``docs/quantities.md`` defines N(Φ) and H(Φ) of a partition Φ.
"""

import re

from lightning_linf.quantity import (
    PREFIX as PREFIX,
)
from lightning_linf.quantity import (
    Column,
    Histogram,
    Monitor,
    PartitionScalar,
    Quantity,
    Scalar,
    ScalarAndColumn,
)

_CURVATURE = "loss per parameter squared"

HETEROGENEITY = Monitor(
    "GradientHeterogeneityMonitor", "heterogeneity_per_tensor", per_optimizer=True
)
NOISE_OF_GRADIENT = Monitor("GradientNoiseMonitor", "noise_per_tensor")
SMOOTHNESS = Monitor("LinfSmoothnessMonitor", "smoothness_per_tensor")
EDGE_OF_STABILITY = Monitor("EdgeMonitor", "edge_per_tensor")
STEP = Monitor("StepMonitor", "step_line")
MONITORS = (HETEROGENEITY, NOISE_OF_GRADIENT, SMOOTHNESS, EDGE_OF_STABILITY, STEP)

# How unevenly the gradient is spread over its entries.
_SPREAD = "gradient: density, Gini coefficient, energy of the top 1 %"
DENSITY = ScalarAndColumn(
    "density",
    "‖g‖₁² / (d ‖g‖₂²): 1 if all entries of |g| are equal, 1/d if only one entry is not zero.",
    (HETEROGENEITY,),
    charts=(_SPREAD,),
    label="gradient density ‖g‖₁² / (d ‖g‖₂²)",
)
GINI = ScalarAndColumn(
    "gini",
    "Gini coefficient: 0 if all entries of |g| are equal, close to 1 if a few entries hold nearly "
    "all of the sum.",
    (HETEROGENEITY,),
    charts=(_SPREAD,),
    label="Gini coefficient of |g|",
)
TOP_ENERGY = ScalarAndColumn(
    "top1_energy",
    "Share of ‖g‖₂² that lies in the largest 1 % of the entries.",
    (HETEROGENEITY,),
    charts=(_SPREAD,),
    label="share of ‖g‖₂² in the largest 1 %",
)
ZERO_FRACTION = ScalarAndColumn(
    "zero_fraction",
    "Share of the entries of g that are exactly zero.",
    (HETEROGENEITY,),
    label="fraction of exact zeros in g",
)
MEDIAN_LOG10_GRAD = Scalar(
    "median_log10_grad",
    "Median of log₁₀|g| over the entries that are not zero.",
    (HETEROGENEITY,),
    "log₁₀ of a gradient",
)
NUM_NONFINITE = Scalar(
    "num_nonfinite",
    "Number of entries of g that are inf or NaN. All other quantities of this monitor leave these "
    "entries out.",
    (HETEROGENEITY,),
    "entries",
)
LOG10_QUANTILES = Column(
    "log10_quantiles",
    "Quantiles of log₁₀|g| over the entries that are not zero, at 1, 5, 25, 50, 75, 95 and 99 %.",
    (HETEROGENEITY,),
    "log₁₀ of a gradient",
    label="quantiles of log₁₀|g|",
    levels=(0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99),
)
LOG10_GRAD = Histogram(
    "log10_grad",
    "Histogram of log₁₀|g| over the entries that are not zero: under this tag in event files, as "
    "`histogram` in `geometry.jsonl`.",
    (HETEROGENEITY,),
    "log₁₀ of a gradient",
)

# How much the gradients of single samples differ from their mean.
NOISE_TRACE = Scalar(
    "noise_trace",
    "Variance of one sample's gradient, summed over all d entries.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
    "squared gradient",
)
NOISE_TRACE_ERROR = Scalar(
    "noise_trace_relative_error",
    "Standard error of noise_trace, relative to it.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
)
NOISE_SCALE = Scalar(
    "noise_scale",
    "noise_trace / ‖g‖₂²: the batch size at which the noise of the mean gradient is as large as "
    "the gradient. inf if the gradient cannot be told from noise.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
    "samples",
    charts=("noise scale in samples",),
)
NOISE = PartitionScalar(
    "noise",
    "(Σ_b d_b σ_b) / d. An entry of one sample's gradient has a standard deviation; σ_b is the "
    "root mean square of the standard deviations of the d_b entries of block b.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
    "gradient",
    charts=("noise over d",),
)
NOISE_SCALE_LOWER = PartitionScalar(
    "noise_scale_lower",
    "Lower end of (Σ_b d_b σ_b / ‖G‖_Φ*)², the noise scale of this geometry: the batch size at "
    "which noise equals signal for its steepest descent, sign descent for `coordinate`. Far below "
    "the upper end where noise hides the gradient: measure more samples.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
    "samples",
    charts=("noise scale of a geometry in samples, both ends",),
)
NOISE_SCALE_UPPER = PartitionScalar(
    "noise_scale_upper",
    "Upper end of the noise scale of this geometry. inf if the gradient cannot be told from noise.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
    "samples",
    charts=("noise scale of a geometry in samples, both ends",),
)
TRACE_SHARE = Column(
    "trace_share",
    "Share of noise_trace that comes from this tensor's entries.",
    (NOISE_OF_GRADIENT,),
    label="share of the gradient noise's trace",
)
SIGNAL_TO_NOISE = Column(
    "signal_to_noise",
    "‖g‖₂² over the noise of the measured mean gradient: the variance of one sample's gradient, "
    "summed over this tensor's entries, divided by the number of samples measured.",
    (NOISE_OF_GRADIENT, SMOOTHNESS),
    label="signal-to-noise ratio of the mean gradient",
)

# How far one step of each geometry lowers the loss. Every smoothness is divided by d, so that all
# of them compare.
_STEP = "advantage over SGD along the gradient's own steps"
_ADVANTAGE = "advantage over SGD at worst, both ends"
_UNIT = "× the decrease by SGD's step"
_BOUNDS = "smoothness over d: lambda_max, (1,1)-norm, bounds of H(Phi)"
_MET = "smoothness over d met by a step, both ends"
_ADAPTIVE = "adaptive smoothness over d, lower end"
_ERRORS = "(1,1)-norm: error of the probes, excess of halves of the batches"
STEP_ADVANTAGE = PartitionScalar(
    "step_advantage",
    "Decrease of the loss by the best step of this geometry, to second order, over that by SGD's "
    "best step, if each meets the curvature along itself. NaN if one of the two curvatures is not "
    "positive.",
    (SMOOTHNESS,),
    _UNIT,
    charts=(_STEP,),
)
STEP_ADVANTAGE_ERROR = PartitionScalar(
    "step_advantage_relative_error",
    "What the choice of batches leaves open of step_advantage, if there are several: 1.96 times "
    "this is half of a 95 % interval of its logarithm. inf if a slope is lost in the noise.",
    (SMOOTHNESS,),
)
ADVANTAGE_LOWER = PartitionScalar(
    "advantage_lower",
    "Lower end of the same ratio if each step meets the largest curvature that it can: of "
    "‖g‖_Φ*² / N(Φ) over that of SGD's geometry.",
    (SMOOTHNESS,),
    _UNIT,
    charts=(_ADVANTAGE,),
)
ADVANTAGE_UPPER = PartitionScalar(
    "advantage_upper",
    "Upper end of the same ratio if each step meets the largest curvature that it can: of "
    "‖g‖_Φ*² / N(Φ) over that of SGD's geometry.",
    (SMOOTHNESS,),
    _UNIT,
    charts=(_ADVANTAGE,),
)
LAMBDA_MAX = Scalar(
    "lambda_max",
    "Lower end of max |λᵢ(H)|, the smoothness along l2: the largest curvature that a step of SGD "
    "can meet. It is N(global) / d.",
    (SMOOTHNESS,),
    _CURVATURE,
    charts=(_BOUNDS, _MET),
)
LAMBDA_MAX_ERROR = Scalar(
    "lambda_max_relative_error",
    "(upper end − lower end) / lower end of max |λᵢ(H)|. The upper end is too low for at most "
    "0.25 % of seeds.",
    (SMOOTHNESS,),
)
ONE_ONE_NORM_PER_PARAM = Scalar(
    "one_one_norm_per_param",
    "Estimate of the (1,1)-norm over d, Σᵢⱼ |Hᵢⱼ| / d. This is H(coordinate) / d, the smoothness "
    "along l-infinity: an upper bound of N(coordinate) / d, what a step of Adam can meet.",
    (SMOOTHNESS,),
    _CURVATURE,
    charts=(_BOUNDS,),
)
ONE_ONE_NORM_ERROR = Scalar(
    "one_one_norm_relative_error",
    "Standard error of one_one_norm_per_param, relative to it. It counts the random probes, not "
    "the choice of batches.",
    (SMOOTHNESS,),
    charts=(_ERRORS,),
)
ONE_ONE_NORM_BATCH_EXCESS = Scalar(
    "one_one_norm_batch_excess",
    "By how much the (1,1)-norm of half of the batches exceeds the (1,1)-norm of all batches, "
    "relative to the latter. The (1,1)-norm of all batches exceeds the (1,1)-norm of all data by "
    "roughly 1 to 2.4 times this, or more if the batches are few.",
    (SMOOTHNESS,),
    charts=(_ERRORS,),
)
SMOOTHNESS_RATIO = Scalar(
    "smoothness_ratio",
    "lambda_max / one_one_norm_per_param: how many times smoother the loss is along l-infinity "
    "than along l2.",
    (SMOOTHNESS,),
)
SMOOTHNESS_UPPER = PartitionScalar(
    "smoothness_upper",
    "Upper bound of H(Φ) / d, the blockwise smoothness. Where random probes estimate it, it has a "
    "standard error, which the report shows.",
    (SMOOTHNESS,),
    _CURVATURE,
    charts=(_BOUNDS,),
)
OPERATOR_NORM_LOWER = PartitionScalar(
    "operator_norm_lower",
    "Lower end of N(Φ) / d. N(Φ) is the largest curvature that one step of this geometry can "
    "meet; a step was found that meets this much.",
    (SMOOTHNESS,),
    _CURVATURE,
    charts=(_MET,),
)
OPERATOR_NORM_UPPER = PartitionScalar(
    "operator_norm_upper",
    "Upper end of N(Φ) / d, and of Λ(Φ) / d. It is too low for at most 0.25 % of seeds.",
    (SMOOTHNESS,),
    _CURVATURE,
    charts=(_MET,),
)
ADAPTIVE_LOWER = PartitionScalar(
    "adaptive_lower",
    "Lower end of Λ(Φ) / d, the adaptive smoothness. Its upper end is operator_norm_upper.",
    (SMOOTHNESS,),
    _CURVATURE,
    charts=(_ADAPTIVE,),
)
CONVERGED = PartitionScalar(
    "converged",
    "1 if more Hessian-vector products would move neither end of N(Φ) by more than about 1 %, "
    "else 0.",
    (SMOOTHNESS,),
)
SECANT = PartitionScalar(
    "secant",
    "Smoothness along training's last step from θ to θ′, ‖g′ − g‖_Φ* / (d ‖θ′ − θ‖_Φ): the change "
    "of the gradient per length of the step.",
    (SMOOTHNESS,),
    _CURVATURE,
)
R_SQUARED = PartitionScalar(
    "r_squared",
    "Share of the spread of log|g|, beyond chance, that lies between blocks. If it is near 1, one "
    "second moment for each block loses little against one for each entry.",
    (SMOOTHNESS,),
    charts=("R² of log|g| between blocks",),
)
ONE_ONE_NORM_SHARE = Column(
    "one_one_norm_share",
    "Share of the (1,1)-norm that lies in the rows of H that belong to this tensor's entries.",
    (SMOOTHNESS,),
    label="share of the (1,1)-norm of the Hessian",
)
PROBE_LOSS = Scalar(
    "probe_loss", "Mean loss of the batches that are measured.", (SMOOTHNESS,), "loss"
)
PROBE_HVPS = Scalar(
    "probe_hvps", "Hessian-vector products that this probe took.", (SMOOTHNESS,), "products"
)
PROBE_SECONDS = Scalar("probe_seconds", "Time that this probe took.", (SMOOTHNESS,), "seconds")
PROBE_OVERHEAD = Scalar(
    "probe_overhead",
    "Time of all probes so far, over the time of training so far without the probes.",
    (SMOOTHNESS,),
)

# How near the optimizer's next step is to instability, and what its last step did.
EDGE = Scalar(
    "edge",
    "Largest eigenvalue of the Hessian as the optimizer preconditions it, times the learning rate, "
    "over the largest value at which a step with this momentum is stable; lower end. Above 1, "
    "steps with the present preconditioner diverge; full-batch training settles near 1.",
    (EDGE_OF_STABILITY,),
    charts=("edge",),
)
EDGE_ERROR = Scalar(
    "edge_relative_error",
    "(upper end − lower end) / lower end of edge. The upper end is too low for at most 0.25 % of "
    "seeds.",
    (EDGE_OF_STABILITY,),
)
LARGEST_STABLE_LR = Scalar(
    "largest_stable_lr",
    "Learning rate of the first parameter group at which edge is 1, if those of all groups change "
    "by the same factor. inf if no curvature is positive, NaN if the learning rate is 0.",
    (EDGE_OF_STABILITY,),
    "learning rate",
    charts=("largest stable learning rate",),
)
STEP_GAIN = ScalarAndColumn(
    "step_gain",
    "Change of the loss along the optimizer's last step D, to second order: g·D − D·HD / 2 with g "
    "and H after the step. Negative if the step lowered the loss of the batches measured. A row "
    "has this tensor's part of the sum.",
    (EDGE_OF_STABILITY,),
    "loss",
    charts=("change of the loss by a step",),
    label="change of the loss by the last step",
)
BEST_STEP_MULTIPLE = ScalarAndColumn(
    "best_step_multiple",
    "1 − g·D / D·HD: the multiple of the last step D that would have lowered the loss most, to "
    "second order. Above 1 the step was too short, below 1 too long, below 0 it went uphill. A row "
    "has the multiple of the whole step at which the slope along this tensor's part vanishes. inf "
    "if D·HD is not positive.",
    (EDGE_OF_STABILITY,),
    charts=("best multiple of a step",),
    label="best multiple of the last step",
)
EDGE_SECONDS = Scalar(
    "edge_seconds", "Time that this measurement took.", (EDGE_OF_STABILITY,), "seconds"
)
EDGE_OVERHEAD = Scalar(
    "edge_overhead",
    "Time of all measurements of this monitor so far, over the time of training so far without "
    "them.",
    (EDGE_OF_STABILITY,),
)

# The loss at a few multiples of the optimizer's last step, by forward passes.
_CHANGE = "change of the loss by a step, by forward passes"
_MULTIPLES = "multiples of a step: lowest loss, critical"
STEP_CHANGE = Scalar(
    "step_change",
    "L(θ + D) − L(θ), the change of the loss by the optimizer's last step D, by forward passes. "
    "Negative if the step lowered the loss of the batches measured.",
    (STEP,),
    "loss",
    charts=(_CHANGE,),
)
STEP_CHANGE_ERROR = Scalar(
    "step_change_error",
    "Standard error of step_change: of rounding, and of the choice of batches if there are "
    "several.",
    (STEP,),
    "loss",
)
STEP_CURVATURE = Scalar(
    "step_curvature",
    "D·HD at the end of the optimizer's last step D, by second differences of the loss along it.",
    (STEP,),
    "loss",
)
STEP_CURVATURE_ERROR = Scalar(
    "step_curvature_error",
    "Standard error of step_curvature, with that of the differences. inf if it is unknown.",
    (STEP,),
    "loss",
)
LOWEST_MULTIPLE = Scalar(
    "lowest_multiple",
    "Multiple of the last step at which the loss along it is lowest. Above 1 the step was too "
    "short, below 1 too long, below 0 it went uphill. NaN if the loss falls to the largest "
    "multiple that was tried.",
    (STEP,),
    charts=(_MULTIPLES,),
)
LOWEST_MULTIPLE_ERROR = Scalar(
    "lowest_multiple_error", "Standard error of lowest_multiple.", (STEP,)
)
CRITICAL_MULTIPLE = Scalar(
    "critical_multiple",
    "The largest multiple c of the last step for which the loss at θ + cD, and at all smaller "
    "multiples, is below that at θ; interpolated between its ends. NaN if all that were tried "
    "lower the loss.",
    (STEP,),
    charts=(_MULTIPLES,),
)
CRITICAL_MULTIPLE_ERROR = Scalar(
    "critical_multiple_error", "Standard error of critical_multiple.", (STEP,)
)
CRITICAL_MULTIPLE_LOWER = Scalar(
    "critical_multiple_lower",
    "Lower end of critical_multiple: the largest multiple that was seen to lower the loss. 0 if "
    "none was.",
    (STEP,),
)
CRITICAL_MULTIPLE_UPPER = Scalar(
    "critical_multiple_upper",
    "Upper end of critical_multiple: the smallest multiple that was seen not to lower the loss, "
    "which may be inf or NaN there. inf if all that were tried lower it.",
    (STEP,),
)
CRITICAL_LR = Scalar(
    "critical_lr",
    "critical_multiple times the learning rate that the first parameter group had in the step. 2 "
    "over it is the critical sharpness.",
    (STEP,),
    "learning rate",
    charts=("critical learning rate",),
)
LINE_MULTIPLES = Column(
    "line_multiples",
    "The multiples c of the last step D that were evaluated, of all parameters together: in "
    "`geometry.jsonl` as `whole`.",
    (STEP,),
    label="multiples of the last step",
)
LINE_CHANGES = Column(
    "line_changes",
    "L(θ + cD) − L(θ) at each of line_multiples: in `geometry.jsonl` as `whole`.",
    (STEP,),
    "loss",
    label="change of the loss at multiples of the last step",
)
STEP_FORWARDS = Scalar(
    "step_forwards", "Forward passes over the batches that this measurement took.", (STEP,)
)
STEP_SECONDS = Scalar("step_seconds", "Time that this measurement took.", (STEP,), "seconds")
STEP_OVERHEAD = Scalar(
    "step_overhead",
    "Time of all measurements of this monitor so far, over the time of training so far without "
    "them.",
    (STEP,),
)

ALL = tuple(value for value in globals().values() if isinstance(value, Quantity))


def column(name: str) -> Column:
    """Describe a column of a table; one that a later version has written goes by its name."""
    known = {each.name: each for each in ALL if isinstance(each, Column)}
    return known.get(name) or Column(name, "", (), label=name.replace("_", " "))


def of_monitor(tag: str, name: str) -> str:
    """Make the tag of one of several monitors of a class; "" is the one without a name."""
    return f"{PREFIX}{name}/{tag.removeprefix(PREFIX)}" if name else tag


def check_name(caller: str, name: object) -> None:
    """Raise a ValueError unless a monitor of this name gets tags of its own."""
    is_word = isinstance(name, str) and re.fullmatch(r"[\w.-]*", name) is not None
    is_taken = any(name == each.name for each in ALL) or str(name).startswith("optimizer")
    if not is_word or is_taken:
        raise ValueError(
            f"{caller}: expected `name` of letters, digits, '_', '-' and '.', and not that of a "
            f"quantity or an optimizer, got {name!r}. Write, say, name='train'."
        )
