"""A bar's iterations per second are those of training, whatever probes take."""

from io import StringIO
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console
from rich.progress import Progress

from lightning_linf.callbacks import _probe_in_training as probing


def test_speed_of_a_rich_task_leaves_a_probe_out():
    now = [0.0]
    progress = Progress(get_time=lambda: now[0], console=Console(file=StringIO()))
    progress.add_task("training", total=20)
    (task,) = progress.tasks

    def train(num_steps):
        for _ in range(num_steps):
            now[0] += 0.5
            progress.advance(task.id)

    train(5)
    now[0] += 20.0  # a probe, shorter than the time over which rich takes the mean
    probing._leave_out(task, 20.0)
    train(5)
    assert task.speed == pytest.approx(2.0)
    assert task.elapsed == 25.0  # the clock that is shown goes on


def test_speed_of_a_tqdm_bar_leaves_a_probe_out(monkeypatch):
    now = [60.0]
    monkeypatch.setattr(probing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = TQDMProgressBar()
    shown._train_progress_bar = bar = Tqdm(total=20, file=StringIO())
    bar.start_t = bar.last_print_t = 0.0  # a minute ago, and Lightning has called no `update`
    trainer = SimpleNamespace(progress_bar_callback=shown, received_sigterm=False)
    with probing.products_counted(trainer, 10) as on_hvps:
        on_hvps(1)
        now[0] += 20.0
    assert bar.start_t == 20.0
    bar.close()


def test_a_rich_display_is_left_without_the_probe():
    lines = StringIO()
    console = Console(file=lines, force_terminal=True, width=80)
    shown = RichProgressBar()
    shown.progress = Progress(console=console, auto_refresh=False)
    trainer = SimpleNamespace(progress_bar_callback=shown, received_sigterm=False)
    with shown.progress:
        shown.progress.add_task("Training", total=20)
        with probing.products_counted(trainer, 10) as on_hvps:
            on_hvps(1)
        text = lines.getvalue()
    assert 0 < text.rindex("Probing") < text.rindex("Training")
