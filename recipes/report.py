"""What a recipe says at its end: the measured geometry as a table, and its last row in words."""

import math
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from torch import Tensor
from typing_extensions import override

from lightning_linf import GeometryReport
from lightning_linf.callbacks import LinfSmoothnessMonitor

if TYPE_CHECKING:
    from training import TrainingConfig  # which imports this module

Rows = Sequence[dict[str, Any]]  # a monitor's `history`
_NUM_LAST = 20  # steps whose mean is the training loss of a run
_CHECK_EVERY = 10  # steps between looks whether the loss is still finite


class LossHistory(Callback):
    """Keep what the module logs as ``train_loss`` and ``val_loss``, by 0-based optimizer step.

    Under accumulation the training loss is that of the micro-batch that completed the step.

    Args:
        every_n_steps: Keep the training loss of every n-th step, those that a monitor measures.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.train: dict[int, float] = {}
        self.validation: dict[int, float] = {}
        self._num_steps = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_steps = trainer.global_step  # more than 0 when resumed

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._num_steps:
            return  # accumulating
        self._num_steps = trainer.global_step
        if self._num_steps % self.every_n_steps == 0:  # elsewhere the device need not wait for it
            self.train[self._num_steps - 1] = float(trainer.callback_metrics["train_loss"])

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation[trainer.global_step - 1] = float(trainer.callback_metrics["val_loss"])

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"train": dict(self.train), "validation": dict(self.validation)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train = dict(state_dict["train"])
        self.validation = dict(state_dict["validation"])


class LossRecorder(Callback):
    """Keep the mean training loss of the last steps and the median time of one.

    Stops a run whose loss is no longer finite.
    """

    def __init__(self) -> None:
        self.train_loss = math.nan
        self.losses: list[Tensor] = []  # by step, of this rank
        self.times: list[float] = []
        self._sum: Tensor | float = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._sum = self._sum + outputs["loss"].detach()  # already divided by their number
        if trainer.global_step == len(self.losses):
            return  # accumulating
        self.losses.append(torch.as_tensor(self._sum))
        self.times.append(time.perf_counter())
        self._sum = 0.0
        if len(self.losses) % _CHECK_EVERY == 0:  # elsewhere the device need not wait for it
            is_lost = not bool(self.losses[-1].isfinite())
            if trainer.strategy.reduce_boolean_decision(is_lost, all=False):
                trainer.should_stop = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean = torch.stack(self.losses[-_NUM_LAST:]).mean()
        self.train_loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))

    @property
    def seconds_per_step(self) -> float:
        """The median, which the first steps and other programs hardly change."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return statistics.median(end - start for start, end in pairs)


def print_report(
    smoothness: LinfSmoothnessMonitor,
    heterogeneity: Rows,
    losses: LossHistory,
    config: "TrainingConfig",
    checkpoint: Path,
    classes: tuple[str, str],
) -> None:
    """Print the table, the sentences, and what to do next.

    Args:
        smoothness: The monitor after training.
        heterogeneity: History of the heterogeneity monitor.
        losses: What was logged.
        config: Choices of the run.
        checkpoint: Where it ended.
        classes: Class paths of its module and of its data.
    """
    console = Console()
    if smoothness.history:
        console.print(geometry_table(smoothness.history, heterogeneity, losses))
    console.print(optimizer_sentence(config), highlight=False, markup=False)
    sentence = geometry_sentence(smoothness.history, smoothness.last_report)
    console.print(sentence, highlight=False, markup=False)
    for line in (
        f"Checkpoint: {checkpoint}",
        f"Full report: {measure_command(checkpoint, *classes)}",
        f"Curves: {tensorboard_command(config.runs_dir)}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def geometry_table(smoothness: Rows, heterogeneity: Rows, losses: LossHistory) -> Table:
    """Lay out one row per measurement of the smoothness, with the latest other values before it."""
    table = Table(
        title="Geometry of the loss",
        caption="N/d: what a step along l-infinity meets; lambda_max: along l2",
        box=HORIZONTALS,
        padding=0,
        pad_edge=False,
        show_edge=False,  # 80 columns hold no more
    )
    for title in (
        "step", "train\nloss", "val\nloss", "(1,1)-norm\n/ d", "N / d", "lambda_max",
        "density", "advantage\nof Adam",
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    densities = {row["step"]: row["density"] for row in heterogeneity}
    for row in smoothness:
        step = row["step"]
        n_lower, n_upper = _bracket(row, "operator_norm")
        lower, upper = _bracket(row, "advantage")
        table.add_row(
            str(step),
            _number(_latest(losses.train, step)),
            _number(_latest(losses.validation, step)),
            f"{row['one_one_norm_per_param']:.2g} ±{row['one_one_norm_relative_error']:.0%}",
            f"{n_lower:.2g}-{n_upper:.2g}",
            f"{row['lambda_max']:.3g} +{row['lambda_max_relative_error']:.0%}",
            _number(_latest(densities, step)),
            f"{lower:.3g} to {upper:.3g}",
        )
    return table


def optimizer_sentence(config: "TrainingConfig") -> str:
    """Say what trained, and in which coordinates the geometry is measured all the same."""
    name: str = config.optimizer
    if config.optimizer == "blockwise_adam":
        name += f" (blocks: {config.partition or 'tensor'})"
    if config.rotation is not None:
        name += f" in rotated coordinates ({config.rotation}"
        name += ")" if config.rotation_strength == 1 else f", {config.rotation_strength:g})"
    if config.swap_at:
        name = f"adamw for {config.swap_at} steps, then {name}"
    return f"Trained with {name}. The geometry is measured in the coordinates of the parameters."


def geometry_sentence(smoothness: Rows, report: GeometryReport | None) -> str:
    """Say what the last measurement found, in the words of its report."""
    if not smoothness:
        return (
            "The smoothness was not measured: lower --smoothness_every or train for longer, unless "
            "a warning above gives another reason."
        )
    step = smoothness[-1]["step"]
    if report is None:  # the history is in checkpoints, and reports are not
        return f"The last measurement is that of step {step}, before this training was resumed."
    return f"At step {step}: {report.verdict} {report.recommend().sentence}"


def measure_command(checkpoint: Path, model: str, data: str) -> str:
    """Spell the command that measures all there is about a checkpoint of a recipe."""
    recipes = shlex.quote(str(_seen_from_here(Path(__file__).parent)))
    arguments = f"{shlex.quote(str(checkpoint))} --model {model} --data {data}"
    return _command("lightning-linf", "cli", f"measure {arguments}", f"PYTHONPATH={recipes} ")


def tensorboard_command(runs_dir: str) -> str:
    """Spell the command that shows the runs."""
    return _command("tensorboard", "tensorboard", f"--logdir {shlex.quote(runs_dir)}")


def _command(name: str, extra: str, arguments: str, variables: str = "") -> str:
    """Spell a command for the environment that this program runs in."""
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        return f"pip install 'lightning-linf[{extra}]' && {variables}{name} {arguments}"
    if shutil.which(name) != str(program):  # else the environment is active
        name = shlex.quote(str(_seen_from_here(program)))
    return f"{variables}{name} {arguments}"


def _seen_from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _bracket(row: dict[str, Any], quantity: str) -> tuple[float, float]:
    """Read both ends of a quantity of Adam's geometry."""
    return row[f"{quantity}_lower/coordinate"], row[f"{quantity}_upper/coordinate"]


def _latest(values: dict[int, Any], step: int) -> float | None:
    past = [known for known in values if known <= step]
    return float(values[max(past)]) if past else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
