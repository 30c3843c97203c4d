"""The text of a report: lines, cells and sentences, which every place that shows it lays out."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lightning_linf.report.interval import Interval
from lightning_linf.report.measurement import Measurement
from lightning_linf.report.settings import coordinates_of, settings_of
from lightning_linf.report.shares import shares_sentence
from lightning_linf.report.verdict import judge

# What the choice of M batches adds to the (1,1)-norm falls like 1/M at the fastest and like
# 1/sqrt(M) at the slowest. If like 1/M, it is as much as their two halves exceed the whole by; if
# like 1/sqrt(M), it is this many times as much.
_SLOWEST = 1 / (2**0.5 - 1)

NOT_CONVERGED = "*: not converged. With more HVPs an end of N(Phi) could still move by over 1 %."


@dataclass(frozen=True)
class ReportText:
    """What a reader gets to know, in the order of reading; plain strings without markup.

    A terminal and an HTML page show all of it, so that the same run reads the same everywhere.
    """

    coordinates: str  # in which it was measured
    settings: str  # with what, in one line
    header: list[str]
    headings: list[str]  # of the table's columns
    rows: list[list[str]]  # by partition, from many blocks to few
    num_smoothness: int  # columns of smoothness, after the first; the rest are of single steps
    legend: list[str]  # what the columns are
    verdict: str
    verdict_status: str  # the same in one or two words
    shares: str  # of Adam's decrease in one step, by partition


def describe(measured: Measurement) -> ReportText:
    """Put a measurement in words."""
    names = fine_to_coarse(measured)
    smoothness, steps = _smoothness_columns(measured, names), _step_columns(measured, names)
    marked = [name if measured.smoothness[name].converged else f"{name} *" for name in names]
    columns = {"partition": marked, **smoothness, **steps}
    verdict = judge(measured)
    return ReportText(
        coordinates=coordinates_of(measured),
        settings=settings_of(measured),
        header=list(_header(measured)),
        headings=list(columns),
        rows=[*map(list, zip(*columns.values(), strict=True)), *_spectral_row(measured, columns)],
        num_smoothness=len(smoothness),
        legend=list(_legend(measured)),
        verdict=verdict.sentence,
        verdict_status=verdict.status,
        shares=shares_sentence(measured),
    )


def number(value: float) -> str:
    """Write three significant digits."""
    return f"{value:.3g}"


def with_error(value: float, relative_error: float) -> str:
    """Write a value with its relative error in per cent; an exact one has none.

    Example:
        >>> with_error(5.25, 0.072), with_error(1.0, 0.0)
        ('5.25 ±7.2 %', '1')
    """
    if not math.isfinite(relative_error):
        return f"{number(value)} (error unknown)"
    if relative_error == 0:
        return number(value)
    digits = ".0f" if relative_error >= 0.1 else ".2g"
    return f"{number(value)} ±{100 * relative_error:{digits}} %"


def smoothness_bracket(measured: Measurement, partition: str) -> Interval:
    """Give the bracket of N(Phi) over d, comparable with lambda_max."""
    block = measured.smoothness[partition]
    return Interval(block.lower / measured.num_params, block.operator_upper / measured.num_params)


def around_lambda_max(measured: Measurement) -> Interval:
    """Bracket lambda_max: the value itself is a lower end, and its error reaches to the upper."""
    return Interval(
        measured.lambda_max, measured.lambda_max * (1 + measured.lambda_max_relative_error)
    )


def fine_to_coarse(measured: Measurement) -> list[str]:
    """List the partitions from most blocks to fewest."""
    return sorted(measured.smoothness, key=lambda name: -measured.smoothness[name].num_blocks)


def _header(measured: Measurement) -> Iterator[str]:
    one_one = with_error(measured.one_one_norm_per_param, measured.one_one_norm_relative_error)
    yield "Geometry of the loss at one point"
    yield settings_of(measured)
    yield (
        f"loss {number(measured.loss)}, gradient density {number(measured.density)}, lambda_max "
        f"{around_lambda_max(measured)}, (1,1)-norm/d {one_one}"
    )
    if measured.one_one_norm > 0:
        yield _batch_part(measured)
    if measured.noise is not None:
        noise = measured.noise
        yield (
            f"noise per sample: trace {with_error(noise.trace, noise.trace_relative_error)}, "
            f"{_noise_scale(noise.noise_scale)} ({noise.num_microbatches:,} microbatches, "
            f"{noise.weight:,.0f} samples)"
        )
    yield f"{measured.num_hvps:,} Hessian-vector products (HVPs), {number(measured.seconds)} s"
    if "date" in measured.settings:
        yield _training(measured)


def _noise_scale(samples: float) -> str:
    if samples == math.inf:
        return "noise scale not known: the mean gradient cannot be told from 0"
    return f"noise scale {samples:,.0f} samples"


def _training(measured: Measurement) -> str:
    """Say what was trained, and when it was measured."""
    settings = measured.settings
    stage = f", in the stage {settings['stage']!r}" if "stage" in settings else ""
    return (
        f"{settings.get('model', 'a model')}, trained by {settings.get('optimizer', 'unknown')}, "
        f"measured {settings['date']}{stage}"
    )


def _batch_part(measured: Measurement) -> str:
    """Say by how much the choice of batches makes the (1,1)-norm too large.

    The error that stands beside the (1,1)-norm is that of the probes alone.
    """
    excess = measured.one_one_norm_batch_excess
    if excess is None:
        return (
            "(1,1)-norm of one microbatch: higher than the (1,1)-norm of all data, by an unknown "
            "amount. Measure on several batches."
            if measured.settings.get("num_batches", 1) == 1
            else "(1,1)-norm: higher than the (1,1)-norm of all data, by an amount that was not "
            "measured"
        )
    if excess <= 0:
        return (
            "(1,1)-norm: not higher on halves of the batches, so they show no excess over the "
            "(1,1)-norm of all data"
        )
    most = excess * _SLOWEST
    return (
        f"(1,1)-norm: roughly {100 * excess:.0f} to {100 * most:.0f} % higher than the (1,1)-norm "
        f"of all data, and more if the batches are few (halves of them: {100 * excess:.0f} % "
        "higher)"
    )


def _smoothness_columns(measured: Measurement, names: list[str]) -> dict[str, list[str]]:
    d, blocks = measured.num_params, [measured.smoothness[name] for name in names]
    columns = {
        "blocks": [f"{block.num_blocks:,}" for block in blocks],
        "N(Phi)/d": [str(smoothness_bracket(measured, name)) for name in names],
    }
    if _has_adaptive(measured):
        columns["Lambda(Phi)/d"] = [
            str(Interval(block.adaptive_lower / d, block.adaptive_upper / d)) for block in blocks
        ]
    columns |= {
        "H(Phi)/d": [
            # H(coordinate) is the (1,1)-norm itself; the others are only bounded.
            ("" if name == "coordinate" else "<= ")
            + with_error(block.upper / d, block.upper_relative_error)
            for name, block in zip(names, blocks, strict=True)
        ],
    }
    if measured.secant is not None:
        columns["secant/d"] = _cells(names, measured.secant, d)
    return columns | {"HVPs": [f"{block.num_hvps:,}" for block in blocks]}


def _has_adaptive(measured: Measurement) -> bool:
    """Whether the adaptive smoothness was measured; not so in reports of earlier versions."""
    return not any(math.isnan(block.adaptive_lower) for block in measured.smoothness.values())


def _step_columns(measured: Measurement, names: list[str]) -> dict[str, list[str]]:
    columns = {
        "along g": [_along(measured, name) for name in names],
        "advantage": [str(measured.advantage[name]) for name in names],
        "decrease": [str(measured.decrease[name]) for name in names],
        "R²": _cells(names, measured.r_squared),
    }
    if measured.noise is not None:
        columns["noise/d"] = _cells(names, measured.noise.block_noise, measured.num_params)
    return columns


def _along(measured: Measurement, name: str) -> str:
    value = measured.step_advantage[name]
    if name == "global" or measured.step_advantage_relative_error is None:
        return number(value)
    return with_error(value, measured.step_error(name))


def _of_along(measured: Measurement) -> str:
    if measured.step_advantage_relative_error is None:
        return "Its error over batches is not known."
    return "±: over batches; 1.96 times it is half a 95 % interval of the logarithm."


def _cells(names: list[str], values: dict[str, float], divisor: int = 1) -> list[str]:
    return [number(values[name] / divisor) if name in values else "-" for name in names]


def _spectral_row(measured: Measurement, headings: Iterable[str]) -> Iterator[list[str]]:
    """Give the row of the geometry of Muon, if it was measured, under the headings of the table."""
    spectral, d = measured.spectral, measured.num_params
    if spectral is None:
        return
    known = {
        "partition": "spectral",
        "N(Phi)/d": str(Interval(spectral.lower / d, spectral.operator_upper / d)),
        "HVPs": f"{spectral.num_hvps:,}",
        "along g": number(measured.step_advantage["spectral"]),
    }
    yield [known.get(heading, "-") for heading in headings]


def _legend(measured: Measurement) -> Iterator[str]:
    yield (
        "N(Phi): the largest curvature that one step can meet. The lower end is what a step was "
        "found to meet; the upper end is too low for at most 0.25 % of seeds, and so is the upper "
        "end of lambda_max. H(Phi): blockwise smoothness, an upper bound of N(Phi); an estimate, ± "
        "standard error. H(coordinate) is the (1,1)-norm. All are in loss per parameter squared."
    )
    if _has_adaptive(measured):
        yield (
            "Lambda(Phi): the adaptive smoothness, at least N(Phi), with the same upper end. In "
            "theory N(Phi) is for normalised steepest descent, Lambda(Phi) for blockwise Adam."
        )
    yield (
        "along g: the decrease of the loss by the best step of each geometry, to second order, if "
        "it meets the curvature along itself, over that of global (SGD's geometry); coordinate is "
        f"Adam's geometry. {_of_along(measured)} advantage: the same if each step meets the "
        "largest curvature that it can; decrease: of the loss, by that step. R²: share of the "
        "spread of log|g|, beyond chance, that lies between blocks."
    )
    if measured.spectral is not None:
        yield (
            "spectral: Muon's geometry, the spectral norm of "
            f"{measured.spectral.num_matrices:,} hidden matrices and l-infinity of the rest. The "
            "lower end is what a step was found to meet; the upper end is that of a partition into "
            "whole tensors, whose steps include all of Muon's."
        )
    if measured.secant is not None:
        yield "secant: smoothness along training's last step."
    if measured.noise is not None:
        yield (
            "noise: sum over blocks b of d_b sigma_b, where sigma_b is the standard deviation of "
            "one sample's gradient (root mean square over the d_b entries)."
        )
    if measured.settings.get("matmul_precision") == "high":
        yield (
            "TF32: on CUDA, matrix products of Hessian-vector products rounded what they multiply "
            "to 10 bits. Emulated on five networks, that moved what comes of them by up to 0.2 %, "
            "and upper ends of N, which come of a search, by up to 11 %; stated errors leave this "
            "out."
        )
    if "left_out" in measured.settings:
        yield f"Not measured: {measured.settings['left_out']}"
    if not all(block.converged for block in measured.smoothness.values()):
        yield NOT_CONVERGED
