"""A measurement during training: with a progress bar, and given up when training must end."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.progress import Task

from lightning_linf.callbacks._last_step import LastStep
from lightning_linf.distributed.place import HERE
from lightning_linf.functional.spectral import MatrixSplit
from lightning_linf.lightning_packages import is_either
from lightning_linf.partition import Partition
from lightning_linf.probe import Landscape, ProbeError, measure_landscape
from lightning_linf.probe.brackets import OPERATOR_HVPS
from lightning_linf.probe.noise import measure_noise
from lightning_linf.probe.progress import products_bar
from lightning_linf.probe.spectral import SPECTRAL_HVPS
from lightning_linf.report import GeometryReport


def probe_in_training(
    trainer: Trainer,
    partitions: Sequence[Partition],
    last_step: LastStep,
    landscape: Landscape,
    *,
    matrices: MatrixSplit | None,
    num_probes: int,
    with_noise: bool,
    seed: int,
) -> GeometryReport:
    """Enter a landscape and measure it, with a ProbeError if SIGTERM comes meanwhile."""
    most_hvps = (num_probes + OPERATOR_HVPS) * len(partitions)
    most_hvps += 0 if matrices is None else SPECTRAL_HVPS
    with products_counted(trainer, most_hvps) as on_hvps, landscape:
        with_noise &= landscape.first_half() is not None  # there are several batches
        return measure_landscape(
            landscape,
            partitions,
            matrices=matrices,
            num_probes=num_probes,
            noise=measure_noise(landscape, partitions) if with_noise else None,
            # Its change is one of the parameters, whatever the coordinates are.
            last_step=last_step.change(landscape) if landscape.reparameterization is None else None,
            seed=seed,
            on_hvps=on_hvps,
        )


@contextmanager
def products_counted(trainer: Trainer, total: int) -> Iterator[Callable[[int], object]]:
    """Give what to call with numbers of products: it shows them, and raises after a SIGTERM."""
    num_hvps = 0

    def on_hvps(count: int) -> None:
        nonlocal num_hvps
        if trainer.received_sigterm:
            raise ProbeError("given up, because SIGTERM asks the training to end.")
        num_hvps += count
        HERE.report_progress(f"{num_hvps} of at most {total} products done")
        advance(count)

    with _progress(trainer, total) as advance:
        yield on_hvps


@contextmanager
def _progress(trainer: Trainer, total: int) -> Iterator[Callable[[int], object]]:
    """Show ``total`` products in the style of the trainer's own bar, if it has one.

    The bar's "it/s" stay those of training: its clock stands still meanwhile.
    """
    bar, begin = trainer.progress_bar_callback, time.monotonic()
    if is_either(bar, RichProgressBar) and bar.progress is not None:
        progress = bar.progress
        task = progress.add_task("Probing", total=total)
        try:
            yield lambda count: progress.update(task, advance=count, refresh=True)
        finally:
            progress.remove_task(task)
            for other in progress.tasks:
                _leave_out(other, time.monotonic() - begin)
            progress.refresh()  # without the line of the task
    elif is_either(bar, TQDMProgressBar) and bar.is_enabled:
        with products_bar(total) as lines:
            yield lambda count: lines.update(count)
        # Its `unpause` leaves out all since the bar's last `update`, which Lightning never calls.
        bar.train_progress_bar.start_t += time.monotonic() - begin
    else:
        yield lambda count: None


def _leave_out(task: Task, seconds: float) -> None:
    """Move the times of which rich makes the speed of a task; it has no public name for them."""
    samples = [each._replace(timestamp=each.timestamp + seconds) for each in task._progress]
    task._progress.clear()
    task._progress.extend(samples)
