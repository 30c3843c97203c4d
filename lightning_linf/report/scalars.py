"""The scalars that are logged of a report: one line for each quantity."""

from functools import partial

from lightning_linf import tags
from lightning_linf.report.report import GeometryReport


def scalars_of(report: GeometryReport) -> dict[str, float]:
    """Give the numbers by tag, but for those that follow from others.

    Smoothness is divided by d here, so that all of it compares with ``lambda_max``.
    """
    d = report.num_params
    scalars = {
        tags.ONE_ONE_NORM_PER_PARAM: report.one_one_norm_per_param,
        tags.LAMBDA_MAX: report.lambda_max,
        tags.SMOOTHNESS_RATIO: report.ratio,
        tags.ONE_ONE_NORM_ERROR: report.one_one_norm_relative_error,
        tags.LAMBDA_MAX_ERROR: report.lambda_max_relative_error,
        tags.PROBE_LOSS: report.loss,
        tags.PROBE_HVPS: float(report.num_hvps),
    }
    if report.one_one_norm_batch_excess is not None:
        scalars[tags.ONE_ONE_NORM_BATCH_EXCESS] = report.one_one_norm_batch_excess
    for name, block in report.smoothness.items():
        of = partial(tags.of_partition, partition=name)
        if report.secant is not None:
            scalars[of(tags.SECANT)] = report.secant[name] / d
        if report.noise is not None:
            scalars[of(tags.NOISE)] = report.noise.block_noise[name] / d
        scalars[of(tags.CONVERGED)] = float(block.converged)
        if name == "global":
            continue
        scalars[of(tags.OPERATOR_NORM_LOWER)] = block.lower / d
        scalars[of(tags.OPERATOR_NORM_UPPER)] = block.operator_upper / d
        scalars[of(tags.ADVANTAGE_LOWER)] = report.advantage[name].lower
        scalars[of(tags.ADVANTAGE_UPPER)] = report.advantage[name].upper
        scalars[of(tags.STEP_ADVANTAGE)] = report.step_advantage[name]
        if name != "coordinate":
            scalars[of(tags.SMOOTHNESS_UPPER)] = block.upper / d
            scalars[of(tags.R_SQUARED)] = report.r_squared[name]
    if report.noise is not None:
        scalars[tags.NOISE_TRACE] = report.noise.trace
        scalars[tags.NOISE_SCALE] = report.noise.noise_scale
        scalars[tags.NOISE_TRACE_ERROR] = report.noise.trace_relative_error
    return scalars
