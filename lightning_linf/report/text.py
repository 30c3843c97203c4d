"""A report as tables and sentences, for terminals from 80 columns on."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lightning_linf.report.interval import Interval

if TYPE_CHECKING:
    from lightning_linf.report.report import GeometryReport

# One line below the head, in ASCII: a redirected stdout may know no box characters.
HEAD_LINE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


# An excess that falls like 1/sqrt(M) is this times that of halves over the whole; like 1/M, once.
SLOWEST = 1 / (2**0.5 - 1)


class _Column(NamedTuple):
    heading: str
    cells: list[str]


class ReportView:
    """What ``rich.print(report)`` shows: header, table, what its columns are, verdict, advice.

    Args:
        report: What to show.
        keep: Which advice (:meth:`GeometryReport.recommend`).
    """

    def __init__(self, report: "GeometryReport", keep: float = 0.9) -> None:
        self.report = report
        self.keep = keep

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self.report
        # Text and not str throughout: names of partitions may look like markup.
        yield from (Text(line, style="bold") for line in _header(report))
        yield Text()
        names, smoothness, promise = _columns(report)
        whole = _table([names, *smoothness, *promise])
        if Measurement.get(console, options.update(max_width=10_000), whole).maximum <= (
            options.max_width
        ):
            yield whole
        else:
            yield _table([names, *smoothness])
            yield Text()
            yield _table([names, *promise])
        yield Text()
        yield from (Text(line, style="dim") for line in _legend(report))
        yield Text()
        yield Text(report.verdict)
        yield Text(report.recommend(self.keep).sentence)


def number(value: float) -> str:
    """Write three significant digits."""
    return f"{value:.3g}"


def with_error(value: float, relative_error: float) -> str:
    """Write a value and, unless it is exact, its relative error in per cent, if that is known."""
    if math.isnan(relative_error):
        return f"{number(value)} (error unknown)"
    if relative_error == 0:
        return number(value)
    digits = ".0f" if relative_error >= 0.1 else ".2g"
    return f"{number(value)} ±{100 * relative_error:{digits}} %"


def smoothness_bracket(report: "GeometryReport", partition: str) -> Interval:
    """Give the bracket of N(Phi) over d, comparable with lambda_max."""
    block = report.smoothness[partition]
    return Interval(block.lower / report.num_params, block.operator_upper / report.num_params)


def around_lambda_max(report: "GeometryReport") -> Interval:
    """Give both ends of lambda_max: its error is that of the upper one."""
    return Interval(report.lambda_max, report.lambda_max * (1 + report.lambda_max_relative_error))


def fine_to_coarse(report: "GeometryReport") -> list[str]:
    """List the partitions from most blocks to fewest."""
    return sorted(report.smoothness, key=lambda name: -report.smoothness[name].num_blocks)


def _header(report: "GeometryReport") -> Iterator[str]:
    one_one = with_error(report.one_one_norm_per_param, report.one_one_norm_relative_error)
    coordinates = report.settings.get("coordinates", "parameters")
    if coordinates == "parameters":
        coordinates = "the parameters"
    yield (
        f"Geometry of the loss at one point, d = {report.num_params:,}, in the coordinates of "
        f"{coordinates}"
    )
    yield (
        f"loss {number(report.loss)}, gradient density {number(report.density)}, lambda_max "
        f"{around_lambda_max(report)}, (1,1)-norm/d {one_one}"
    )
    if report.one_one_norm > 0:
        yield _batch_part(report)
    if report.noise is not None:
        noise = report.noise
        yield (
            f"noise per sample: trace {with_error(noise.trace, noise.trace_relative_error)}, noise "
            f"scale {noise.noise_scale:,.0f} samples ({noise.num_microbatches:,} microbatches, "
            f"{noise.weight:,.0f} samples)"
        )
    yield f"{report.num_hvps:,} Hessian-vector products (HVPs), {number(report.seconds)} s"


def _batch_part(report: "GeometryReport") -> str:
    """Say what the error beside the (1,1)-norm, that of the probes, leaves out."""
    excess = report.one_one_norm_batch_excess
    if excess is None:
        return (
            "(1,1)-norm from one microbatch: overstates that of the data, by how much is unknown "
            "(measure on several)"
            if report.settings.get("num_batches", 1) == 1
            else "(1,1)-norm: overstates that of the data, by how much was not measured"
        )
    if excess <= 0:
        return (
            "(1,1)-norm: two halves of the batches do not exceed it, so what their choice adds is "
            "not seen"
        )
    most = excess * SLOWEST
    return (
        f"(1,1)-norm: by the choice of batches {100 * excess:.0f} to {100 * most:.0f} % too large, "
        "roughly, and more if they are few (two halves of them exceed it by "
        f"{100 * excess:.0f} %)"
    )


def _columns(report: "GeometryReport") -> tuple[_Column, list[_Column], list[_Column]]:
    """Fill the columns: names, those of the smoothness, those of what it promises."""
    names, d = fine_to_coarse(report), report.num_params
    blocks = [report.smoothness[name] for name in names]
    smoothness = [
        _Column("blocks", [f"{block.num_blocks:,}" for block in blocks]),
        _Column("N(Phi)/d", [str(smoothness_bracket(report, name)) for name in names]),
        _Column(
            "H(Phi)/d",
            [
                # H(coordinate) is the (1,1)-norm itself; the others are only bounded.
                ("" if name == "coordinate" else "<= ")
                + with_error(block.upper / d, block.upper_relative_error)
                for name, block in zip(names, blocks, strict=True)
            ],
        ),
    ]
    if report.secant is not None:
        smoothness.append(_Column("secant/d", _cells(names, report.secant, d)))
    smoothness.append(_Column("HVPs", [f"{block.num_hvps:,}" for block in blocks]))
    promise = [
        _Column("advantage", [str(report.advantage[name]) for name in names]),
        _Column("along g", _cells(names, report.step_advantage)),
        _Column("decrease", [str(report.decrease[name]) for name in names]),
        _Column("R²", _cells(names, report.r_squared)),
    ]
    if report.noise is not None:
        promise.append(_Column("noise/d", _cells(names, report.noise.block_noise, d)))
    marked = [
        name if block.converged else f"{name} *" for name, block in zip(names, blocks, strict=True)
    ]
    return _Column("partition", marked), smoothness, promise


def _cells(names: list[str], values: dict[str, float], divisor: int = 1) -> list[str]:
    return [number(values[name] / divisor) if name in values else "-" for name in names]


def _table(columns: list[_Column]) -> Table:
    table = Table(box=HEAD_LINE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column.heading), justify="right" if index else "left")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _legend(report: "GeometryReport") -> Iterator[str]:
    yield (
        "N(Phi): what one step meets of the curvature; an upper end, lambda_max's too, is too low "
        "for 0.25 % of seeds at most. H(Phi): blockwise "
        "smoothness, ± standard error; for coordinate the (1,1)-norm itself. Both in loss per "
        "parameter squared."
    )
    yield (
        "decrease: of the loss, promised by one step of steepest descent. advantage: the same over "
        "that of global, the geometry of SGD; coordinate is that of Adam. along g: the same by the "
        "curvature along that step itself. R²: of the spread of log|g| beyond chance, between "
        "blocks."
    )
    if report.secant is not None:
        yield "secant: smoothness along training's last step."
    if report.noise is not None:
        yield "noise: sum over blocks of d_b sigma_b, per sample."
    if "left_out" in report.settings:
        yield f"Not measured: {report.settings['left_out']}"
    if not all(block.converged for block in report.smoothness.values()):
        yield "*: not converged, an end of N(Phi) may still move by over 1 %. Allow more HVPs."
