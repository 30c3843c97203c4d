"""The runs of a comparison: each is trained once, and its outcome is kept as a file.

A run is trained again when its settings, its data, the code behind it or the version of torch is
another. Several runs can go on at a time.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from inspect import getfile
from modulefinder import ModuleFinder
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, RenderableType

import lightning_linf
from comparison import single_run
from comparison.jobs import in_jobs
from comparison.records import write_json
from comparison.single_run import Outcome, Run, loss_text
from settings import RecipeError
from training.config import Prepare

_PLACES = {"name", "runs_dir", "cache_dir"}  # settings that no outcome depends on
_LIBRARY = Path(lightning_linf.__file__).parent
_RECIPES = Path(__file__).parents[1]


class Runs:
    """Make the runs that were not made before.

    Args:
        prepare: Makes trainer, module and data of a config (see `training.config.Prepare`).
        data_id: Name of the content of the data.
        num_jobs: How many runs go on at a time; if several, each in a process of its own.
        budget: Minutes after which no further run is started.
    """

    def __init__(self, prepare: Prepare, data_id: str, num_jobs: int, budget: float) -> None:
        self.prepare = prepare
        self.data_id = data_id
        self.num_jobs = num_jobs
        self.deadline = time.monotonic() + 60 * budget
        self.budget = budget
        self._finished: dict[Path, Outcome] = {}

    def finish(self, runs: Sequence[Run]) -> list[Outcome]:
        """Give the outcomes of all runs, after making those that are missing.

        Raises:
            RecipeError: If the budget ends before the last one is started.
        """
        paths = [_path(run, self.data_id) for run in runs]
        # All ranks must agree on which runs are missing. So each looks at all files before the
        # first run is made, and at its own memory first, because only rank 0 writes files.
        outcomes = [self._finished.get(path) or _read(path) for path in paths]
        for i, outcome in enumerate(outcomes):
            if outcome is not None and paths[i] not in self._finished:
                self._finish(i, runs, paths[i], outcome, "kept from before")
        missing = [i for i, outcome in enumerate(outcomes) if outcome is None]
        for i, outcome in self._make(runs, missing):
            outcomes[i] = outcome
            content = {"outcome": asdict(outcome), "config": asdict(runs[i].config)}
            write_json(paths[i], {**content, "data": self.data_id})
            self._finish(i, runs, paths[i], outcome, f"{outcome.seconds_per_step:.3f} s a step")
        done = [outcome for outcome in outcomes if outcome is not None]
        if len(done) < len(runs):
            raise RecipeError(
                f"budget: expected {len(runs)} runs within {self.budget:g} minutes, got "
                f"{len(done)}. The same command goes on where this one stopped."
            )
        return done

    def _make(self, runs: Sequence[Run], missing: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        function = partial(single_run.train, prepare=self.prepare)
        made = in_jobs(function, [runs[i] for i in missing], self.num_jobs, self.deadline)
        return ((missing[i], outcome) for i, outcome in made)

    def _finish(self, i: int, runs: Sequence[Run], path: Path, outcome: Outcome, note: str) -> None:
        self._finished[path] = outcome
        losses = f"train {loss_text(outcome.train_loss)}, val {loss_text(outcome.val_loss)}"
        say(f"{i + 1}/{len(runs)} {runs[i].label}: {losses}, {note}")


@rank_zero_only
def say(what: RenderableType) -> None:
    """Print a table, or a line that is not wrapped."""
    Console().print(what, highlight=False, markup=False, soft_wrap=isinstance(what, str))


def _path(run: Run, data_id: str) -> Path:
    """Name the file of a run by a hash of all that its outcome depends on."""
    choices = {k: v for k, v in asdict(run.config).items() if k not in _PLACES}
    measured = [run.partitions, run.rotations, run.num_points, run.is_shaken]
    what = [data_id, choices, measured, torch.__version__, _code(getfile(type(run.config)))]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    name = run.label.replace(", ", "-").replace(" ", "-")
    return Path(run.config.runs_dir, run.config.name, f"{name}-{digest[:8]}.json")


@cache
def _code(recipe: str) -> str:
    """Hash the library, and the files that the recipe and `single_run` import.

    What only chooses runs and shows them, which begins at `comparison.compare`, is left out, and so
    are other recipes: a change there repeats no run.
    """
    finder = ModuleFinder([str(_RECIPES)], excludes=["comparison.compare"])
    for program in (recipe, getfile(single_run)):
        finder.load_file(program)
    files = [getattr(module, "__file__", None) for module in finder.modules.values()]
    digest = hashlib.sha256()
    for file in [*sorted(_LIBRARY.rglob("*.py")), *sorted({Path(file) for file in files if file})]:
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
