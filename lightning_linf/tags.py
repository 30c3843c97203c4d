"""Every tag that is logged, in one place: callbacks write them, TensorBoard layouts read them."""

PREFIX = "geometry/"

# Gradient heterogeneity. All are numbers in [0, 1] but for the quantile.
DENSITY = PREFIX + "density"
GINI = PREFIX + "gini"
TOP_ENERGY = PREFIX + "top1_energy"
ZERO_FRACTION = PREFIX + "zero_fraction"
MEDIAN_LOG10_GRAD = PREFIX + "median_log10_grad"
NUM_NONFINITE = PREFIX + "num_nonfinite"

# Smoothness, in loss per parameter squared, both per coordinate so that they compare.
ONE_ONE_NORM_PER_PARAM = PREFIX + "one_one_norm_per_param"
LAMBDA_MAX = PREFIX + "lambda_max"
SMOOTHNESS_RATIO = PREFIX + "smoothness_ratio"  # d * lambda_max / (1,1)-norm, no unit
ONE_ONE_NORM_ERROR = PREFIX + "one_one_norm_relative_error"
LAMBDA_MAX_ERROR = PREFIX + "lambda_max_relative_error"
PROBE_LOSS = PREFIX + "probe_loss"
PROBE_HVPS = PREFIX + "probe_hvps"
PROBE_SECONDS = PREFIX + "probe_seconds"
