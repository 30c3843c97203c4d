"""Does training settle at the edge of stability, where the edge that is measured says 1?

    python benchmarks/edge.py                     # about 7 minutes on one core
    python benchmarks/edge.py --steps 300 --every 30 --optimizers SGD     # to see that it works

A tanh network of 1,410 parameters fits random signs by all 512 samples at once, at a constant
learning rate, with rates a factor of 2 apart. First table: the edge over the last third of the
steps; "reached" is the first measured step at which it was 0.95 or more. That it settles at 1 has
no free parameter (arXiv:2207.14484). A run that never reaches the edge says nothing of it.

Second table: the largest stable learning rate as it is measured after some steps at the smallest
rate, against the one that is found by trying: the largest of rates 5 % apart at which the loss
stays below its present value for the next 100 steps, from the same state. The measured one is that
of the present point and second moments, which change while a rate is tried.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from stopwatch import heading
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_linf import EdgeReport, Landscape, Rotation
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized
from lightning_linf.probe.edge import measure_edge_of_landscape

Make = Callable[[list[nn.Parameter], float], Optimizer]
# By name: what makes the optimizer, and the smallest of its learning rates.
OPTIMIZERS: dict[str, tuple[Make, float]] = {
    "SGD": (lambda p, lr: SGD(p, lr), 0.1),
    "SGD, momentum 0.9": (lambda p, lr: SGD(p, lr, momentum=0.9), 0.1),
    "SGD, Nesterov 0.9": (lambda p, lr: SGD(p, lr, momentum=0.9, nesterov=True), 0.025),
    "Adam": (lambda p, lr: Adam(p, lr), 0.002),
    "AdamW, decay 0.1": (lambda p, lr: AdamW(p, lr, weight_decay=0.1), 0.002),
    "BlockwiseAdam, tensor": (lambda p, lr: BlockwiseAdam(p, lr), 0.002),
    "AdaSGD": (lambda p, lr: AdaSGD(p, lr), 0.001),
    "rotated Adam": (
        lambda p, lr: Reparameterized(p, lambda q: Adam(q, lr), Rotation(seed=0)), 0.001
    ),
}  # fmt: skip
NUM_RATES = 3
GRID = 1.05  # between rates that are tried
WINDOW = 100  # steps for which a rate is tried


def make_network(seed: int) -> nn.Module:
    """Make the network."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    )


def make_data(num_samples: int = 512) -> tuple[Tensor, Tensor]:
    """Make inputs and targets that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_samples, 8, generator=generator)
    return inputs, torch.randn(num_samples, 2, generator=generator).sign()


DATA = make_data()


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the loss of all samples."""
    inputs, targets = batch
    return (module(inputs) - targets).square().mean()


def train(module: nn.Module, optimizer: Optimizer, num_steps: int) -> Iterator[float]:
    """Make steps, and yield the loss before each."""
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = squared_error(module, DATA)
        loss.backward()
        optimizer.step()
        yield loss.item()


def measure(module: nn.Module, optimizer: Optimizer) -> EdgeReport:
    """Measure the edge on all samples."""
    with Landscape(module, [DATA], loss=squared_error) as landscape:
        return measure_edge_of_landscape(landscape, [optimizer])


class Run(NamedTuple):
    """The edge along a training."""

    reached: int | None
    edges: list[float]
    last_loss: float


def follow(make: Make, lr: float, seed: int, num_steps: int, every: int) -> Run:
    """Train, and measure the edge at every few steps; stop if the loss is not finite."""
    module = make_network(seed)
    optimizer = make(list(module.parameters()), lr)
    edges: list[float] = []
    loss = math.nan
    for step, loss in enumerate(train(module, optimizer, num_steps), 1):
        if not math.isfinite(loss):
            break
        if step % every == 0:
            edges.append(measure(module, optimizer).edge)
    reached = next((i for i, edge in enumerate(edges, 1) if edge >= 0.95), None)
    return Run(None if reached is None else reached * every, edges, loss)


def settled(run: Run, num_measured: int) -> str:
    """Give mean, least and largest edge over the last third."""
    if len(run.edges) < num_measured:
        return "diverged"
    last = run.edges[-(num_measured // 3) :]
    return f"{sum(last) / len(last):.3f} ({min(last):.3f} to {max(last):.3f})"


def is_stable(module: nn.Module, optimizer: Optimizer, lr: float) -> bool:
    """Try a rate from this state: does the loss stay below its present value?"""
    tried, stepped = copy.deepcopy((module, optimizer))
    for group in stepped.param_groups:
        group["lr"] = lr
    first, *later = train(tried, stepped, WINDOW + 1)
    return all(loss <= first for loss in later)


def largest_tried(module: nn.Module, optimizer: Optimizer, guess: float) -> float:
    """Find the largest stable rate, by bisection of a grid of 60 rates to both sides of a guess."""
    low, high = -60, 60  # powers of the factor between rates
    while high - low > 1:
        middle = (low + high) // 2
        if is_stable(module, optimizer, guess * GRID**middle):
            low = middle
        else:
            high = middle
    return guess * GRID**low


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--points", type=int, nargs="+", default=[100, 400, 1600])
    parser.add_argument("--seed", type=int, default=0)
    choices = parser.parse_args()
    heading()
    print("optimizer                  rate  reached   edge, last third          last loss")
    for name in choices.optimizers:
        make, least = OPTIMIZERS[name]
        for lr in (least * 2**k for k in range(NUM_RATES)):
            run = follow(make, lr, choices.seed, choices.steps, choices.every)
            print(
                f"{name:22s} {lr:8g} {run.reached or 'never':>8}   "
                f"{settled(run, choices.steps // choices.every):24s} {run.last_loss:10.2g}",
                flush=True,
            )
    print("\n                                  ---- largest stable rate ----")
    print("optimizer                 step     measured      tried    ratio     edge")
    for name in choices.optimizers:
        make, lr = OPTIMIZERS[name]
        module = make_network(choices.seed)
        optimizer = make(list(module.parameters()), lr)
        for step, _ in enumerate(train(module, optimizer, max(choices.points)), 1):
            if step in choices.points:
                report = measure(module, optimizer)
                tried = largest_tried(module, optimizer, report.largest_stable_lr)
                ratio = report.largest_stable_lr / tried
                print(
                    f"{name:22s} {step:7d} {report.largest_stable_lr:12.4g} {tried:10.4g} "
                    f"{ratio:8.2f} {report.edge:8.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
