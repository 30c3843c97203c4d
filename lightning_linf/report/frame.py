"""The numbers of a report as columns: a row for each partition, or for each parameter tensor."""

import math
from typing import Any, Literal, get_args

from lightning_linf.report.measurement import Measurement
from lightning_linf.report.text import fine_to_coarse

Rows = Literal["partition", "parameter"]


def columns_by(measured: Measurement, rows: Rows) -> tuple[list[str], dict[str, list[Any]]]:
    """Give the names of the rows, and the columns by name; NaN stands for what was not measured.

    Raises:
        ValueError: If ``rows`` is neither "partition" nor "parameter".
    """
    if rows not in get_args(Rows):
        raise ValueError(
            f'GeometryReport.to_pandas: expected `rows` to be "partition" or "parameter", got '
            f"{rows!r}."
        )
    if rows == "parameter":
        tensors = measured.per_tensor
        names = list(dict.fromkeys(name for row in tensors.values() for name in row))
        columns = {name: [row.get(name, math.nan) for row in tensors.values()] for name in names}
        return list(tensors), columns
    partitions = fine_to_coarse(measured)
    made = [_of_partition(measured, name) for name in partitions]
    if measured.spectral is not None:
        partitions = [*partitions, "spectral"]
        made.append(_of_spectral(measured))
    return partitions, {name: [row.get(name, math.nan) for row in made] for name in made[0]}


def _of_partition(measured: Measurement, name: str) -> dict[str, Any]:
    """Give the numbers of one row; all that is of the Hessian is over d, as in the text."""
    d, block = measured.num_params, measured.smoothness[name]
    advantage, decrease = measured.advantage[name], measured.decrease[name]
    noise, secant = measured.noise, measured.secant or {}
    return {
        "num_blocks": block.num_blocks,
        "operator_norm_lower": block.lower / d,
        "operator_norm_upper": block.operator_upper / d,
        "adaptive_lower": block.adaptive_lower / d,
        "smoothness_upper": block.upper / d,
        "smoothness_upper_relative_error": block.upper_relative_error,
        "converged": block.converged,
        "step_advantage": measured.step_advantage[name],
        "step_advantage_relative_error": 0.0 if name == "global" else measured.step_error(name),
        "advantage_lower": advantage.lower,
        "advantage_upper": advantage.upper,
        "decrease_lower": decrease.lower,
        "decrease_upper": decrease.upper,
        "r_squared": measured.r_squared.get(name, math.nan),
        "noise": math.nan if noise is None else noise.block_noise.get(name, math.nan) / d,
        "secant": secant.get(name, math.nan) / d,
        "num_hvps": block.num_hvps,
    }


def _of_spectral(measured: Measurement) -> dict[str, Any]:
    spectral, d = measured.spectral, measured.num_params
    assert spectral is not None
    return {
        "operator_norm_lower": spectral.lower / d,
        "operator_norm_upper": spectral.operator_upper / d,
        "step_advantage": measured.step_advantage["spectral"],
        "num_hvps": spectral.num_hvps,
    }
