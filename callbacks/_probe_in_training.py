"""A measurement during training: with a progress bar, and given up when training must end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_linf.callbacks._last_step import LastStep
from lightning_linf.functional.spectral import MatrixSplit
from lightning_linf.lightning_packages import is_either
from lightning_linf.partition import Partition
from lightning_linf.probe import Landscape, ProbeError, measure_landscape
from lightning_linf.probe.brackets import OPERATOR_HVPS
from lightning_linf.probe.noise import measure_noise
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

    def on_hvps(count: int) -> None:
        if trainer.received_sigterm:
            raise ProbeError("given up, because SIGTERM asks the training to end.")
        advance(count)

    with _progress(trainer, total) as advance:
        yield on_hvps


@contextmanager
def _progress(trainer: Trainer, total: int) -> Iterator[Callable[[int], object]]:
    """Show ``total`` products in the style of the trainer's own bar, if it has one."""
    bar = trainer.progress_bar_callback
    if is_either(bar, RichProgressBar) and bar.progress is not None:
        progress = bar.progress
        task = progress.add_task("Probing", total=total)
        try:
            yield lambda count: progress.update(task, advance=count, refresh=True)
        finally:
            progress.remove_task(task)
    elif is_either(bar, TQDMProgressBar) and bar.is_enabled:
        with Tqdm(desc="Probing", total=total, leave=False, dynamic_ncols=True) as lines:
            yield lambda count: lines.update(count)
    else:
        yield lambda count: None
