"""What is logged and recorded of a report: one line for each quantity."""

import math

from lightning_linf import quantities
from lightning_linf.report.edge import EdgeReport
from lightning_linf.report.report import GeometryReport


def scalars_of(report: GeometryReport) -> dict[str, float]:
    """Give the numbers by tag, but for those that follow from others.

    Smoothness is divided by d here, so that all of it compares with ``lambda_max``.
    """
    d = report.num_params
    scalars = {
        quantities.ONE_ONE_NORM_PER_PARAM.tag: report.one_one_norm_per_param,
        quantities.LAMBDA_MAX.tag: report.lambda_max,
        quantities.SMOOTHNESS_RATIO.tag: report.ratio,
        quantities.ONE_ONE_NORM_ERROR.tag: report.one_one_norm_relative_error,
        quantities.LAMBDA_MAX_ERROR.tag: report.lambda_max_relative_error,
        quantities.PROBE_LOSS.tag: report.loss,
        quantities.PROBE_HVPS.tag: float(report.num_hvps),
    }
    if report.one_one_norm_batch_excess is not None:
        scalars[quantities.ONE_ONE_NORM_BATCH_EXCESS.tag] = report.one_one_norm_batch_excess
    for name, block in report.smoothness.items():
        if report.secant is not None:
            scalars[quantities.SECANT.of(name)] = report.secant[name] / d
        if report.noise is not None:
            scalars[quantities.NOISE.of(name)] = report.noise.block_noise[name] / d
            for ends, quantity in (
                (report.noise.noise_scale_lower, quantities.NOISE_SCALE_LOWER),
                (report.noise.noise_scale_upper, quantities.NOISE_SCALE_UPPER),
            ):
                if ends is not None:
                    scalars[quantity.of(name)] = ends[name]
        scalars[quantities.CONVERGED.of(name)] = float(block.converged)
        if name == "global":
            continue
        scalars[quantities.OPERATOR_NORM_LOWER.of(name)] = block.lower / d
        scalars[quantities.OPERATOR_NORM_UPPER.of(name)] = block.operator_upper / d
        scalars[quantities.ADAPTIVE_LOWER.of(name)] = block.adaptive_lower / d
        scalars[quantities.ADVANTAGE_LOWER.of(name)] = report.advantage[name].lower
        scalars[quantities.ADVANTAGE_UPPER.of(name)] = report.advantage[name].upper
        scalars[quantities.STEP_ADVANTAGE.of(name)] = report.step_advantage[name]
        if report.step_advantage_relative_error is not None:
            scalars[quantities.STEP_ADVANTAGE_ERROR.of(name)] = report.step_error(name)
        if name != "coordinate":
            scalars[quantities.SMOOTHNESS_UPPER.of(name)] = block.upper / d
            scalars[quantities.R_SQUARED.of(name)] = report.r_squared[name]
    if report.spectral is not None:
        scalars[quantities.OPERATOR_NORM_LOWER.of("spectral")] = report.spectral.lower / d
        scalars[quantities.OPERATOR_NORM_UPPER.of("spectral")] = report.spectral.operator_upper / d
        scalars[quantities.STEP_ADVANTAGE.of("spectral")] = report.step_advantage["spectral"]
    if report.noise is not None:
        scalars[quantities.NOISE_TRACE.tag] = report.noise.trace
        scalars[quantities.NOISE_SCALE.tag] = report.noise.noise_scale
        scalars[quantities.NOISE_TRACE_ERROR.tag] = report.noise.trace_relative_error
    return scalars


def columns_of(report: GeometryReport) -> dict[str, list[float]]:
    """Give what a record keeps of each parameter tensor of a report."""
    rows = report.per_tensor.values()
    return {
        name: [row[name] for row in rows]
        for name in (quantities.ONE_ONE_NORM_SHARE.name, quantities.SIGNAL_TO_NOISE.name)
        if all(name in row for row in rows)
    }


def edge_scalars_of(report: EdgeReport) -> dict[str, float]:
    """Give the numbers by tag, but for those that follow from others or were not measured."""
    scalars = {}
    if not math.isnan(report.edge):
        scalars[quantities.EDGE.tag] = report.edge
        scalars[quantities.EDGE_ERROR.tag] = report.edge_relative_error
        scalars[quantities.LARGEST_STABLE_LR.tag] = report.largest_stable_lr
    if report.step is not None:
        scalars[quantities.STEP_GAIN.tag] = report.step.gain
        scalars[quantities.BEST_STEP_MULTIPLE.tag] = report.step.best_multiple
    return scalars


def edge_columns_of(report: EdgeReport) -> dict[str, list[float]]:
    """Give what a record keeps of each parameter tensor: its part of the last step."""
    rows = report.per_tensor.values()
    if not rows:  # no step was made
        return {}
    return {
        quantities.STEP_GAIN.name: [row.gain for row in rows],
        quantities.BEST_STEP_MULTIPLE.name: [row.best_multiple for row in rows],
    }
