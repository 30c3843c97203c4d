"""One run of a task, and one measurement on Adam's run."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_linf import GeometryReport, Rotation
from lightning_linf.partition import hidden_matrices
from lightning_linf.partition_names import PartitionName
from lightning_linf.probe import Landscape, measure_landscape
from lightning_linf.probe.noise import measure_noise
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.probe.spectral import split_matrices
from prediction.both_measures import coarsest
from prediction.contenders import contender
from prediction.quantities import QUANTITIES, Reading
from prediction.tasks import Batch, Task, task

BETAS = (0.9, 0.95)  # the first is the momentum of SGD and Signum, too
WARMUP = 0.05  # share of the steps over which the rate rises, before a cosine leads down
LAST_RATE = 0.1  # share of the peak to which the cosine leads
AVERAGED = 0.1  # share of the steps, the last ones, whose mean loss is the final one
MEASURED = 0.1  # share of the steps after which Adam's run is measured
NUM_BATCHES = 4  # over which the loss that is measured is a mean
NUM_PROBES = 16
KEEP = 0.9  # share of Adam's lead that an advised partition is to keep
PARTITIONS: tuple[PartitionName, ...] = ("coordinate", "row", "tensor", "global")


@dataclass(frozen=True)
class Run:
    """A training, or the first tenth of one and a measurement there."""

    task: str
    contender: str
    lr: float
    seed: int
    measured: bool = False


@dataclass(frozen=True)
class Trained:
    """How a training ended: the mean of its last losses, None if it diverged."""

    loss: float | None
    seconds: float  # of one core


@dataclass(frozen=True)
class Measured:
    """What was measured: by quantity, a number for each geometry; and what the tool advised."""

    values: Mapping[str, Mapping[str, float]]
    advised: str
    seconds: float  # of one core


def carry_out(run: Run) -> Trained | Measured:
    """Make a run on one thread, where its result does not depend on what runs beside it."""
    torch.set_num_threads(1)
    return _measure(run) if run.measured else _train(run)


class Training:
    """A training whose steps are asked for one by one; the seed fixes weights, order and rotation.

    There is no clipping and no weight decay. The data is drawn with replacement.
    """

    def __init__(self, run: Run) -> None:
        self.task: Task = task(run.task)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(run.seed)
            self.module: nn.Module = self.task.make()
        self._generator = Generator().manual_seed(run.seed)
        geometry = contender(run.contender).geometry
        if geometry.rotation is not None:
            geometry = replace(geometry, rotation_seed=run.seed)
        plain = torch.optim.Adam(self.module.parameters(), lr=run.lr, betas=BETAS)
        self.optimizer = geometry.make(plain, self.module)
        self._scheduler = LambdaLR(self.optimizer, self._share_of_peak)

    def _share_of_peak(self, step: int) -> float:
        num_warmup = max(1, round(WARMUP * self.task.num_steps))
        if step < num_warmup:
            return (step + 1) / num_warmup
        progress = (step - num_warmup) / max(1, self.task.num_steps - num_warmup)
        return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * progress)) / 2

    def batch(self) -> Batch:
        """Draw the next batch."""
        return self.task.draw(self.task.batch_size, self._generator)

    def steps(self, num_steps: int) -> Iterator[float]:
        """Make steps, and yield the loss before each."""
        for _ in range(num_steps):
            loss = self.task.loss(self.module, self.batch())
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            self.optimizer.step()
            self._scheduler.step()
            yield loss.item()


def _train(run: Run) -> Trained:
    started = time.process_time()
    training, losses = Training(run), list[float]()
    for loss in training.steps(training.task.num_steps):
        losses.append(loss)
        if not math.isfinite(loss):
            return Trained(None, time.process_time() - started)
    return Trained(final_loss(losses), time.process_time() - started)


def final_loss(losses: Sequence[float]) -> float:
    """Give the mean of the last tenth of the losses."""
    last = losses[-max(1, round(AVERAGED * len(losses))) :]
    return math.fsum(last) / len(last)


def _measure(run: Run) -> Measured:
    """Measure all geometries after the first tenth of a run, on the batches that come next."""
    started = time.process_time()
    training = Training(run)
    num_steps = max(1, round(MEASURED * training.task.num_steps))
    _exhaust(training.steps(num_steps - 1))
    before = _vector(training.module)
    _exhaust(training.steps(1))
    batches = [training.batch() for _ in range(NUM_BATCHES)]
    plain = _report(training, batches, PARTITIONS, last_step=_vector(training.module) - before)
    rotated = _report(training, batches, ("coordinate",), Rotation("global", seed=run.seed))
    size = training.task.batch_size
    readings = {name: Reading(plain, name, size) for name in plain.curvature}
    readings["coordinate rotated"] = Reading(rotated, "coordinate", size)
    return Measured(
        values={
            quantity.name: {name: quantity.read(reading) for name, reading in readings.items()}
            for quantity in QUANTITIES
        },
        advised=coarsest(plain, KEEP) or "coordinate",
        seconds=time.process_time() - started,
    )


def _report(
    training: Training,
    batches: Sequence[Batch],
    names: Sequence[PartitionName],
    rotation: Rotation | None = None,
    last_step: Tensor | None = None,
) -> GeometryReport:
    module = training.module
    partitions = choose_partitions(module, names)
    has_matrices = rotation is None and bool(hidden_matrices(module))
    matrices = split_matrices(module) if has_matrices else None
    landscape = Landscape(
        module, batches, loss=training.task.loss, mode="train", reparameterization=rotation
    )
    with landscape:
        noise = measure_noise(landscape, partitions)
        return measure_landscape(
            landscape, partitions, num_probes=NUM_PROBES, noise=noise, last_step=last_step,
            matrices=matrices,
        )  # fmt: skip


def _vector(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _exhaust(steps: Iterator[float]) -> None:
    deque(steps, maxlen=0)
