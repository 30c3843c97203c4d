"""The runs of a comparison: each is trained once and kept as a file, several at a time if asked.

Other choices, other data, other code or another torch make another run.
"""

import hashlib
import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, RenderableType

import lightning_linf
from settings import RecipeError
from comparison.single_run import Outcome, Run, number, train
from training.train import Prepare

_SAME_ANYWHERE = {"name", "runs_dir", "cache_dir"}  # no part of what a run is
_SOURCES = (Path(lightning_linf.__file__).parent, Path(__file__).parent)  # a part of it, like torch
_OF_NO_RUN = {  # choose runs, show them, or are another study
    "compare.py", "figures.py", "paper.py", "quadratic.py", "rank_correlation.py", "records.py",
    "runs.py", "sweep.py", "tables.py", "variants.py", "versions.py",
}  # fmt: skip


class Runs:
    """Make runs that are not there yet.

    Args:
        prepare: Makes trainer, module and data of a config, callbacks and options of the Trainer.
        num_jobs: Runs at a time, each in a process of its own if there are several.
        budget: Minutes after which no run is started.
    """

    def __init__(self, prepare: Prepare, num_jobs: int = 1, budget: float = math.inf) -> None:
        self.prepare = prepare
        self.num_jobs = num_jobs
        self.deadline = time.monotonic() + 60 * budget
        self.budget = budget
        self._finished: dict[Path, Outcome] = {}

    def finish(self, runs: Sequence[Run], data_id: str) -> list[Outcome]:
        """Give the outcomes of all, after making those that are missing.

        Raises:
            RecipeError: If the budget ends before the last one is started.
        """
        paths = [_path(run, data_id) for run in runs]
        # All before the first run, and from memory before files, which rank 0 alone writes: ranks
        # (which must share runs_dir) agree on what is left.
        outcomes = [self._finished.get(path) or _read(path) for path in paths]
        for i, outcome in enumerate(outcomes):
            if outcome is not None and paths[i] not in self._finished:
                self._finish(i, runs, paths[i], outcome, "kept from before")
        missing = [i for i, outcome in enumerate(outcomes) if outcome is None]
        for i, outcome in self._make(runs, missing):
            outcomes[i] = outcome
            _write(paths[i], outcome, runs[i], data_id)
            self._finish(i, runs, paths[i], outcome, f"{outcome.seconds_per_step:.3f} s a step")
        done = [outcome for outcome in outcomes if outcome is not None]
        if len(done) < len(runs):
            raise RecipeError(
                f"budget: expected {len(runs)} runs within {self.budget:g} minutes, got "
                f"{len(done)}. The same command goes on where this one stopped."
            )
        return done

    def _make(self, runs: Sequence[Run], missing: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        if self.num_jobs == 1 or len(missing) < 2:
            for i in missing:
                if time.monotonic() > self.deadline:
                    return
                yield i, train(runs[i], self.prepare)
            return
        num_threads = max(1, (os.cpu_count() or 1) // self.num_jobs)
        context = multiprocessing.get_context("spawn")  # a fork would break CUDA and thread pools
        left = iter(missing)
        with ProcessPoolExecutor(self.num_jobs, context, _start_job, (num_threads,)) as pool:
            running: dict[Future[Outcome], int] = {}
            while True:
                while len(running) < self.num_jobs and time.monotonic() <= self.deadline:
                    if (started := next(left, None)) is None:
                        break
                    running[pool.submit(train, runs[started], self.prepare)] = started
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()

    def _finish(self, i: int, runs: Sequence[Run], path: Path, outcome: Outcome, note: str) -> None:
        self._finished[path] = outcome
        losses = f"train {number(outcome.train_loss)}, val {number(outcome.val_loss)}"
        say(f"{i + 1}/{len(runs)} {runs[i].label}: {losses}, {note}")


def _start_job(num_threads: int) -> None:
    """Prepare a process for runs; it ends with the one that started it, even if that is killed."""
    torch.set_num_threads(num_threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@rank_zero_only
def say(what: RenderableType) -> None:
    """Print a table, or a line that is not wrapped."""
    Console().print(what, highlight=False, markup=False, soft_wrap=isinstance(what, str))


@rank_zero_only
def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(part, path)


def _path(run: Run, data_id: str) -> Path:
    """Name the file of a run after all that its outcome depends on."""
    choices = {k: v for k, v in asdict(run.config).items() if k not in _SAME_ANYWHERE}
    measured = [run.partitions, run.rotations, run.num_points]
    what = [data_id, choices, measured, torch.__version__, _code()]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    name = run.label.replace(", ", "-").replace(" ", "-")
    return Path(run.config.runs_dir, run.config.name, f"{name}-{digest[:8]}.json")


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for file in sorted(folder.rglob("*.py")):
            if folder != _SOURCES[1] or file.name not in _OF_NO_RUN:
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Outcome | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())["outcome"]
        return Outcome(**{**content, "geometry": tuple(content["geometry"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"compare: expected a finished run in {str(path)!r}, got {type(error).__name__}. "
            "Delete it to repeat the run."
        ) from error


def _write(path: Path, outcome: Outcome, run: Run, data_id: str) -> None:
    content = {"outcome": asdict(outcome), "config": asdict(run.config), "data": data_id}
    write_json(path, content)
