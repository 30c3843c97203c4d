"""What a recipe prints at its end: the measured geometry as a table, and its last row in words."""

import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from lightning_linf import GeometryReport
from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.report.interval import Interval, divide, is_unknown
from lightning_linf.report.text import around_lambda_max, describe, smoothness_bracket
from training.config import TrainingConfig
from training.losses import LossHistory

_RECIPES = Path(__file__).resolve().parents[1]
_LEGEND = (
    "N / d and lambda_max: the largest curvature that a step along l-infinity (Adam's geometry) "
    "can meet, and one along l2 (SGD's), between two ends. (1,1)-norm: an upper bound of N, ± the "
    "error of its random probes. density: how evenly the gradient is spread over its entries; 1 is "
    "evenly. along g: how many times as far as SGD's best step Adam's best step lowers the loss, "
    "by the curvature along each, ± the error over batches (±? of one batch: unknown)."
)
Rows = Sequence[dict[str, Any]]  # a monitor's `history`


def print_summary(
    smoothness: LinfSmoothnessMonitor,
    heterogeneity: Rows,
    losses: LossHistory,
    config: TrainingConfig,
    checkpoint: Path,
    classes: tuple[str, str],
) -> None:
    """Print the table, the sentences, and commands that show more.

    Args:
        smoothness: The monitor after training.
        heterogeneity: History of the heterogeneity monitor.
        losses: The losses that the module logged.
        config: Settings of the run.
        checkpoint: The file in which the run ended.
        classes: Import paths of the classes of its module and of its data, for `measure`.
    """
    console = Console()
    if smoothness.history:
        console.print(geometry_table(smoothness.history, heterogeneity, losses))
        console.print(_LEGEND, highlight=False, markup=False)
    for sentence in (
        optimizer_sentence(config),
        *geometry_sentences(smoothness.history, smoothness.last_report),
    ):
        console.print(f"\n{sentence}", highlight=False, markup=False)
    console.print()
    for line in (
        f"Checkpoint: {checkpoint}",
        "Measure it on more batches, with geometries in between, in about ten times the time:",
        measure_command(checkpoint, *classes, num_batches=4 * config.probe_batches),
        "See the curves, in the tab GEOMETRY:",
        tensorboard_command(config.runs_dir),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def geometry_table(smoothness: Rows, heterogeneity: Rows, losses: LossHistory) -> Table:
    """Lay out one row per measurement of the smoothness.

    Beside it stand the latest losses and the latest density that were known at that step. Steps
    count from 1, as in the panels.
    """
    table = Table(
        title="Geometry of the loss",
        box=HORIZONTALS,
        padding=0,
        pad_edge=False,
        show_edge=False,  # 80 columns hold no more
    )
    for title in (
        "step", "train\nloss", "val\nloss", "(1,1)-norm\n/ d", "N / d", "lambda_max",
        "density", "along g:\nAdam / SGD",
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    densities = {row["step"]: row["density"] for row in heterogeneity}
    for row in smoothness:
        step = row["step"]
        n_ends = (row[f"operator_norm_{end}/coordinate"] for end in ("lower", "upper"))
        sgd = row["lambda_max"]
        error = row.get("step_advantage_relative_error/coordinate", math.nan)
        table.add_row(
            str(step + 1),
            _number(_latest(losses.train, step)),
            _number(_latest(losses.validation, step)),
            f"{row['one_one_norm_per_param']:.2g} ±{row['one_one_norm_relative_error']:.0%}",
            "-".join(f"{end:.2g}" for end in n_ends),
            _ends(sgd, sgd * (1 + row["lambda_max_relative_error"])),
            _number(_latest(densities, step)),
            f"{row['step_advantage/coordinate']:.2g} ±"
            + ("?" if math.isnan(error) else f"{error:.0%}"),
        )
    return table


def optimizer_sentence(config: TrainingConfig) -> str:
    """Say which optimizer trained, and that the geometry is not measured in its coordinates."""
    name: str = config.optimizer
    if config.optimizer == "blockwise_adam":
        name += f" (blocks: {config.partition or 'tensor'})"
    if config.rotation is not None:
        name += f" in rotated coordinates ({config.rotation}"
        name += ")" if config.rotation_strength == 1 else f", {config.rotation_strength:g})"
    if config.swap_at:
        name = f"adamw for {config.swap_at} steps, then {name}"
    return f"Trained with {name}. The geometry is measured in the coordinates of the parameters."


def geometry_sentences(smoothness: Rows, report: GeometryReport | None) -> Iterator[str]:
    """Say what the last measurement found: first what it knows for certain, then its verdict."""
    if not smoothness:
        yield (
            "The smoothness was not measured: lower --smoothness_every or train for longer, unless "
            "a warning above gives another reason."
        )
        return
    step = smoothness[-1]["step"] + 1
    if report is None:  # the history is in checkpoints, and reports are not
        yield f"The last measurement is that of step {step}, before this training was resumed."
        return
    yield f"At step {step}: {smoothness_sentence(report)}"
    text = describe(report)
    yield text.verdict
    if len(report.smoothness) > 2:  # of SGD's geometry alone the verdict has said it
        yield text.shares


def smoothness_sentence(measured: GeometryReport) -> str:
    """Compare the largest curvatures of both geometries, from end to end.

    The ends are for the batches measured, and as sure after a short search as after a long one.
    """
    adam, sgd = smoothness_bracket(measured, "coordinate"), around_lambda_max(measured)
    ratio = Interval(divide(sgd.lower, adam.upper), divide(sgd.upper, adam.lower))
    if is_unknown(ratio):
        return "The loss that was measured has no curvature."
    samples = measured.settings.get("num_samples")
    these = f"{samples:,.0f} samples" if isinstance(samples, int | float) else "batches"
    return (
        f"On the {these} measured, the loss is {ratio} times as smooth along l-infinity (Adam's "
        f"geometry) as along l2 (SGD's): N / d, the largest curvature that a step can meet, is "
        f"{adam} along the one and {sgd} along the other. Others may differ, by how much was not "
        "measured."
    )


def measure_command(checkpoint: Path, model: str, data: str, num_batches: int) -> str:
    """Write the command that measures the whole geometry at a checkpoint, on lines for a shell."""
    recipes = shlex.quote(str(_seen_from_here(_RECIPES)))
    arguments = (
        f"measure \\\n    {shlex.quote(str(checkpoint))} \\\n"
        f"    --model {model} --data {data} --num_batches {num_batches}"
    )
    return "  " + _command("lightning-linf", "cli", arguments, f"PYTHONPATH={recipes} ")


def tensorboard_command(runs_dir: str) -> str:
    """Write the command that shows the runs in TensorBoard."""
    return "  " + _command("tensorboard", "tensorboard", f"--logdir {shlex.quote(runs_dir)}")


def _command(name: str, extra: str, arguments: str, variables: str = "") -> str:
    """Write a command so that it works in the environment that this program runs in."""
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        return f"pip install 'lightning-linf[{extra}]' && {variables}{name} {arguments}"
    if shutil.which(name) != str(program):  # else the environment is active
        name = shlex.quote(str(_seen_from_here(program)))
    return f"{variables}{name} {arguments}"


def _seen_from_here(path: Path) -> Path:
    """Shorten a path below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _latest(values: dict[int, Any], step: int) -> float | None:
    """Find the value of the last step up to ``step``."""
    past = [known for known in values if known <= step]
    return float(values[max(past)]) if past else None


def _ends(lower: float, upper: float) -> str:
    """Write two ends, or one number where three digits do not tell them apart."""
    return "-".join(dict.fromkeys(f"{end:.3g}" for end in (lower, upper)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
