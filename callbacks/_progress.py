"""A progress bar for probes, beside the one of training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_linf.lightning_packages import is_either


@contextmanager
def probe_progress(
    trainer: Trainer, description: str, total: int
) -> Iterator[Callable[[int], object]]:
    """Show ``total`` products in the style of the trainer's own bar, if it has one."""
    bar = trainer.progress_bar_callback
    if is_either(bar, RichProgressBar) and bar.progress is not None:
        progress = bar.progress
        task = progress.add_task(description, total=total)
        try:
            yield lambda count: progress.update(task, advance=count, refresh=True)
        finally:
            progress.remove_task(task)
    elif is_either(bar, TQDMProgressBar) and bar.is_enabled:
        with Tqdm(desc=description, total=total, leave=False, dynamic_ncols=True) as lines:
            yield lambda count: lines.update(count)
    else:
        yield lambda count: None
