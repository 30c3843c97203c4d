"""What a recipe says at its end: the measured geometry as a table, and its last row in words."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from typing_extensions import override

Rows = Sequence[dict[str, Any]]  # a monitor's `history`


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


def print_report(
    smoothness: Rows, heterogeneity: Rows, losses: LossHistory, runs_dir: str, checkpoint: Path
) -> None:
    """Print the table, the sentence, and what to do next."""
    console = Console()
    if smoothness:
        console.print(geometry_table(smoothness, heterogeneity, losses))
    console.print(geometry_sentence(smoothness, heterogeneity), highlight=False)
    console.print(f"Checkpoint: {checkpoint}", highlight=False, soft_wrap=True)
    console.print(f"Curves: {tensorboard_command(runs_dir)}", highlight=False, soft_wrap=True)


def geometry_table(smoothness: Rows, heterogeneity: Rows, losses: LossHistory) -> Table:
    """Lay out one row per measurement of the smoothness, with the latest other values before it."""
    table = Table(title="Geometry of the loss", caption="ratio = d lambda_max / (1,1)-norm")
    for title in (
        "step", "train\nloss", "val\nloss", "(1,1)-norm\n/ d", "lambda_max", "gradient\ndensity",
        "ratio",
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    for row in smoothness:
        step = row["step"]
        table.add_row(
            str(step),
            _number(_latest(losses.train, step)),
            _number(_latest(losses.validation, step)),
            f"{row['one_one_norm_per_param']:.3g} ±{row['one_one_norm_relative_error']:.0%}",
            f"{row['lambda_max']:.3g} ±{row['lambda_max_relative_error']:.0%}",
            _number(_density(heterogeneity, step)),
            f"{row['smoothness_ratio']:.2f}",
        )
    return table


def geometry_sentence(smoothness: Rows, heterogeneity: Rows) -> str:
    """Say what the last measurement promises Adam over SGD.

    A step of steepest descent promises a decrease of ``dual(g)^2 / (2 smoothness)``. That is at
    least ``norm1(g)^2 / (2 (1,1)-norm)`` in l-infinity and ``norm2(g)^2 / (2 lambda_max)`` in l2:
    their quotient is the gradient's density times ``d lambda_max / (1,1)-norm``.
    """
    if not smoothness:
        return (
            "The smoothness was not measured: lower --smoothness_every or train for longer, unless "
            "a warning above gives another reason."
        )
    step, ratio = smoothness[-1]["step"], smoothness[-1]["smoothness_ratio"]
    density = _density(heterogeneity, step)
    if density is None:
        return (
            f"At step {step}, d lambda_max was {ratio:.2f} times the (1,1)-norm. Which optimizer "
            "that favours depends on the gradient's density: lower --heterogeneity_every to see it."
        )
    advantage = density * ratio
    error = advantage * smoothness[-1]["one_one_norm_relative_error"]
    verdict = (
        "this point favours Adam."
        if advantage - 2 * error > 1
        else "that leaves open which of them this point favours, as the (1,1)-norm is the upper "
        "end of what a step along l-infinity meets."
    )
    return (
        f"At step {step} the loss is {ratio:.2f} times smoother per coordinate along l-infinity, "
        f"the geometry of Adam, than along l2, that of SGD; with a gradient of density "
        f"{density:.3f}, steepest descent along l-infinity promises at least {advantage:.2f} "
        f"± {error:.2f} times the decrease of steepest descent along l2: {verdict}"
    )


def tensorboard_command(runs_dir: str) -> str:
    """Spell the command that shows the runs, for the environment that this program runs in."""
    program = Path(sys.executable).with_name("tensorboard")
    if not program.exists():
        return f"pip install 'lightning-linf[tensorboard]' && tensorboard --logdir {runs_dir}"
    if shutil.which("tensorboard") == str(program):  # the environment is active
        return f"tensorboard --logdir {runs_dir}"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return f"{program} --logdir {runs_dir}"


def _latest(values: dict[int, Any], step: int) -> float | None:
    past = [known for known in values if known <= step]
    return float(values[max(past)]) if past else None


def _density(heterogeneity: Rows, step: int) -> float | None:
    return _latest({row["step"]: row["density"] for row in heterogeneity}, step)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
