"""Rotate a quadratic: Adam's loss follows the (1,1)-norm of the Hessian, SGD's stays.

    python recipes/quadratic.py                   # seconds on a CPU
    python recipes/quadratic.py --dim 200 --angles '[0,1]'

Minimises x^T H x / 2, where H has ten eigenvalues 1 and then 1/k^2, in coordinates rotated by
exp(t M) for growing t, with a random skew-symmetric M. The start is rotated with them, so that all
problems are the same up to the rotation. Every optimizer runs at all learning rates of a grid, each
constant over the run, and is judged at its best. A rotation by 1e-12 shows what rounding alone
does. Writes quadratic.json and .png to runs_dir/name.

Every field of `Config` is a flag (--help); flags win over `--config FILE.yaml`.
Needs, in the clone: python -m pip install -e '.[recipes]'
"""

import requirements  # noqa: F401  # first of all, to say what is missing

# isort: split
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer

from command_line import parse
from comparison.figures import draw_quadratic
from comparison.records import write_json
from comparison.versions import versions
from lightning_linf.optim import BlockwiseAdam
from settings import RecipeError, check_fields, refuse_unless

_CONTROL = 1e-12  # a rotation that changes only the rounding


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    name: str = "quadratic"
    """Folder of the results under runs_dir."""
    dim: int = 1000
    """Number of coordinates, d: more are nearer to a network, and cost their square."""
    num_large: int = 10
    """Number of eigenvalues that are 1; the others are 1, 1/4, 1/9, ..."""
    angles: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """Values of t, how far to rotate. The eigenvalues of M lie between -2i and 2i."""
    max_steps: int = 500
    """Steps of every optimizer."""
    num_rates: int = 12
    """Learning rates tried, each half the one before: more reach smaller ones, and cost more."""
    beta2: float = 0.95
    """How much of the mean of g^2 Adam and AdaSGD keep in a step: more follows the noise less."""
    seed: int = 0
    """Decides the start and M."""
    runs_dir: str = "runs"
    """Folder of all results."""

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero={"seed"})
        refuse_unless(self, (
            ("num_large", self.num_large < self.dim, f"less than dim={self.dim}", "Try 10."),
            ("angles", len(self.angles) > 0, "at least one", "Try [0,1]."),
            ("beta2", 0 <= self.beta2 < 1, "in [0, 1)", "Try 0.95."),
        ))  # fmt: skip


@dataclass(frozen=True)
class Method:
    """An optimizer and its largest learning rate; ``make`` gets a list of vectors to optimize.

    Each vector is a problem of its own.
    """

    name: str
    max_lr: float
    make: Callable[[Sequence[Tensor], float, float], Optimizer]  # of all vectors, lr and beta2


def _adasgd(xs: Sequence[Tensor], lr: float, betas: tuple[float, float]) -> Optimizer:
    """Make AdaSGD of every vector: one second moment a tensor."""
    return BlockwiseAdam(xs, lr=lr, betas=betas, partition="tensor")


METHODS = (
    Method("Adam, beta1 = 0", 1.0,
           lambda xs, lr, beta2: torch.optim.Adam(xs, lr=lr, betas=(0.0, beta2))),
    Method("Adam, beta1 = 0.9", 1.0,
           lambda xs, lr, beta2: torch.optim.Adam(xs, lr=lr, betas=(0.9, beta2))),
    Method("AdaSGD, beta1 = 0", 1.0, lambda xs, lr, beta2: _adasgd(xs, lr, (0.0, beta2))),
    Method("AdaSGD, beta1 = 0.9", 1.0, lambda xs, lr, beta2: _adasgd(xs, lr, (0.9, beta2))),
    Method("SGD", 8.0, lambda xs, lr, _: torch.optim.SGD(xs, lr=lr)),
    Method("SGD, momentum 0.9", 8.0,
           lambda xs, lr, _: torch.optim.SGD(xs, lr=lr, momentum=0.9)),
)  # fmt: skip


def spectrum(config: Config) -> Tensor:
    """Give the eigenvalues, shape (d,)."""
    small = torch.arange(1, config.dim - config.num_large + 1, dtype=torch.float64) ** -2.0
    return torch.cat([torch.ones(config.num_large, dtype=torch.float64), small])


def skew_symmetric(config: Config) -> Tensor:
    """Draw M, whose entries have variance 1/d. Shape (d, d)."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.dim, config.dim)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (gaussian - gaussian.T) / math.sqrt(2 * config.dim)


def final_losses(hessians: Tensor, starts: Tensor, config: Config) -> list[dict[str, list[float]]]:
    """Run all methods at all their learning rates on all problems.

    Args:
        hessians: Symmetric, one a problem. Shape (p, d, d).
        starts: Shape (p, d).
        config: Settings of the study.

    Returns:
        For each problem and method the final losses, that of the largest learning rate first.
    """
    rates = [2.0**-i for i in range(config.num_rates)]
    # One optimizer steps the vectors of all problems, because the call takes most of its time.
    points = [[x.clone().requires_grad_() for x in starts] for _ in METHODS for _ in rates]
    optimizers = [
        method.make(points[i * len(rates) + j], method.max_lr * rate, config.beta2)
        for i, method in enumerate(METHODS)
        for j, rate in enumerate(rates)
    ]
    for _ in range(config.max_steps):
        gradients = _stacked(points) @ hessians  # (p, runs, d)
        for run, optimizer in enumerate(optimizers):
            for x, gradient in zip(points[run], gradients[:, run], strict=True):
                x.grad = gradient
            optimizer.step()
    ends = _stacked(points)
    losses = ((ends @ hessians) * ends).sum(dim=2) / 2
    by_method = losses.view(-1, len(METHODS), len(rates)).tolist()
    names = [method.name for method in METHODS]
    return [dict(zip(names, rows, strict=True)) for rows in by_method]


def _stacked(points: Sequence[Sequence[Tensor]]) -> Tensor:
    """Join the points of all runs, shape (problems, runs, d)."""
    with torch.no_grad():
        return torch.stack([torch.stack(list(x)) for x in zip(*points, strict=True)])


def study(config: Config, angles: Sequence[float]) -> list[dict[str, Any]]:
    """Measure the (1,1)-norm and run every method, for every t."""
    eigenvalues, skew = spectrum(config), skew_symmetric(config)
    generator = torch.Generator().manual_seed(config.seed + 1)
    start = torch.randn(config.dim, generator=generator, dtype=torch.float64)
    rotations = torch.stack([torch.linalg.matrix_exp(t * skew) for t in angles])
    hessians = (rotations * eigenvalues) @ rotations.mT
    found = final_losses(hessians, rotations @ start, config)
    return [
        {
            "t": t,
            "one_one_norm_per_param": float(hessian.abs().sum()) / config.dim,
            "best": {name: _best(losses, name) for name, losses in runs.items()},
            "losses": runs,
        }
        for t, hessian, runs in zip(angles, hessians, found, strict=True)
    ]


def _best(losses: Sequence[float], name: str) -> dict[str, Any]:
    """Find the learning rate with the least loss, and say whether it is an end of the grid."""
    order = [loss if math.isfinite(loss) else math.inf for loss in losses]
    if math.inf in (least := min(order), -least):
        raise RecipeError(
            f"num_rates: expected a rate at which {name} does not diverge, got none. "
            "Raise --num_rates: the added ones are smaller."
        )
    index = order.index(least)
    max_lr = next(method.max_lr for method in METHODS if method.name == name)
    is_end = index in (0, len(losses) - 1)
    return {"lr": max_lr * 2.0**-index, "loss": least, "is_end": is_end}


def results_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay out one row per method, one column per t."""
    table = Table(title="Final loss at the best learning rate", box=HORIZONTALS, show_edge=False)
    table.add_column("t\n(1,1)-norm / d", no_wrap=True)
    for row in rows:
        table.add_column(f"{row['t']:g}\n{row['one_one_norm_per_param']:.3g}", justify="right")
    for method in METHODS:
        cells = [row["best"][method.name] for row in rows]
        stars = ["*" if cell["is_end"] else "" for cell in cells]
        texts = (f"{cell['loss']:.3g}{star}" for cell, star in zip(cells, stars, strict=True))
        table.add_row(method.name, *texts)
        if any(stars):
            table.caption = "* an end of the grid: a better rate may lie beyond (--num_rates)"
    return table


def sentences(rows: Sequence[dict[str, Any]], control: dict[str, Any]) -> list[str]:
    """Say, per method, whether its loss rises with the (1,1)-norm or stays.

    Args:
        rows: The results for every t.
        control: The result for a rotation so small that it changes only the rounding.
    """
    ordered = sorted(rows, key=lambda row: float(row["one_one_norm_per_param"]))
    texts = []
    for method in METHODS:
        ends = [f"t = {row['t']:g}" for row in ordered if row["best"][method.name]["is_end"]]
        if ends:
            where = ", ".join(ends)
            texts.append(f"{method.name}: no conclusion, the best rate is an end at {where}.")
            continue
        losses = [row["best"][method.name]["loss"] for row in ordered]
        change = max(losses) / min(losses)
        if change - 1 < 1e-6:
            text = f"stays: the losses agree to {change - 1:.1g} of their size"
        elif losses == sorted(losses):
            text = f"rises with the (1,1)-norm at every step, {change:.3g} times in all"
        else:
            shaken = [losses[0], control["best"][method.name]["loss"]]
            text = f"changes {change:.3g} times, but not always upwards; "
            text += f"{max(shaken) / min(shaken):.3g} times already by a rotation of {_CONTROL:g}"
        texts.append(f"{method.name}: {text}.")
    return texts


def main(config: Config) -> Path:
    """Run the study, show it, and write it down."""
    started = time.process_time()
    *rows, control = study(config, [*config.angles, _CONTROL])
    seconds = time.process_time() - started
    console = Console()
    console.print(results_table(rows))
    for sentence in sentences(rows, control):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    path = Path(config.runs_dir, config.name, "quadratic.json")
    content = {
        "config": asdict(config), "rows": rows, "control": control, "core_seconds": seconds,
        "versions": versions(),
    }  # fmt: skip
    write_json(path, content, allow_nan=True)  # the losses of rates that diverge
    draw_quadratic(rows, path.with_suffix(".png"))
    console.print(
        f"Written: {path} and .png, {seconds:.0f} s of a core", highlight=False, markup=False
    )
    return path


if __name__ == "__main__":
    try:
        main(parse({"quadratic": Config}, sys.argv[1:], "Rotate a quadratic under optimizers.")[0])
    except RecipeError as error:
        sys.exit(f"error: {error}")
