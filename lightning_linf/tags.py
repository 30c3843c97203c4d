"""Every tag that is logged, in one place: callbacks write them, TensorBoard layouts read them."""

import re

PREFIX = "geometry/"

# Gradient heterogeneity. All are numbers in [0, 1] but for the quantile.
DENSITY = PREFIX + "density"
GINI = PREFIX + "gini"
TOP_ENERGY = PREFIX + "top1_energy"
ZERO_FRACTION = PREFIX + "zero_fraction"
MEDIAN_LOG10_GRAD = PREFIX + "median_log10_grad"
NUM_NONFINITE = PREFIX + "num_nonfinite"
LOG10_GRAD = PREFIX + "log10_grad"  # a histogram of log10|g|, in event files only

# Gradient noise per sample: the variance in squared gradients.
NOISE_TRACE = PREFIX + "noise_trace"
NOISE_TRACE_ERROR = PREFIX + "noise_trace_relative_error"
NOISE_SCALE = PREFIX + "noise_scale"  # trace / squared norm of the gradient, in samples
NOISE = PREFIX + "noise"  # by partition: sum_b d_b sigma_b / d, in gradients

# Smoothness, in loss per parameter squared, both per coordinate so that they compare.
ONE_ONE_NORM_PER_PARAM = PREFIX + "one_one_norm_per_param"
LAMBDA_MAX = PREFIX + "lambda_max"
SMOOTHNESS_RATIO = PREFIX + "smoothness_ratio"  # d * lambda_max / (1,1)-norm, no unit
ONE_ONE_NORM_ERROR = PREFIX + "one_one_norm_relative_error"
ONE_ONE_NORM_BATCH_EXCESS = PREFIX + "one_one_norm_batch_excess"  # of two halves of the batches
LAMBDA_MAX_ERROR = PREFIX + "lambda_max_relative_error"
OPERATOR_NORM_LOWER = PREFIX + "operator_norm_lower"  # these by partition; N(Phi) / d
OPERATOR_NORM_UPPER = PREFIX + "operator_norm_upper"
CONVERGED = PREFIX + "converged"  # 1 where both ends may move by 1 % at most, else 0
SMOOTHNESS_UPPER = PREFIX + "smoothness_upper"  # a bound of H(Phi) / d
SECANT = PREFIX + "secant"  # of training's last step, over d
ADVANTAGE_LOWER = PREFIX + "advantage_lower"  # of promised decreases over that of "global", no unit
ADVANTAGE_UPPER = PREFIX + "advantage_upper"
STEP_ADVANTAGE = PREFIX + "step_advantage"  # by the curvature along the gradient's own step
R_SQUARED = PREFIX + "r_squared"  # of log|g| between blocks, no unit
PROBE_LOSS = PREFIX + "probe_loss"
PROBE_HVPS = PREFIX + "probe_hvps"
PROBE_SECONDS = PREFIX + "probe_seconds"
PROBE_OVERHEAD = PREFIX + "probe_overhead"  # seconds of all probes over those of training


def of_partition(tag: str, partition: str) -> str:
    """Make the tag of one partition."""
    return f"{tag}/{partition}"


def of_monitor(tag: str, name: str) -> str:
    """Make the tag of one of several monitors that log the same; "" is the one without a name."""
    return f"{PREFIX}{name}/{tag.removeprefix(PREFIX)}" if name else tag


def check_name(caller: str, name: object) -> None:
    """Raise a ValueError unless it can stand in the tags of a monitor."""
    taken = {value.removeprefix(PREFIX) for key, value in globals().items() if key.isupper()}
    is_word = isinstance(name, str) and re.fullmatch(r"[\w.-]*", name) is not None
    if not is_word or name in taken - {""} or str(name).startswith("optimizer"):
        raise ValueError(
            f"{caller}: expected `name` of letters, digits, '_', '-' and '.', and not that of a "
            f"quantity or an optimizer, got {name!r}. Write, say, name='train'."
        )
