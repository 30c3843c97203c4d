"""What was run already, in a file that is kept with the repository, and what is still to run.

A kept run counts as long as its task and optimizer begin as they did: the first losses are stored
beside it. A change of what is computed shows there; a change of rounding does not.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comparison.single_run import Outcome
from comparison.sweep import STEP, Rate, best, further, is_end, rounded
from comparison.versions import versions
from lightning_linf.json_numbers import NON_FINITE, encode
from lightning_linf.report.files import write_atomically
from prediction import training
from prediction.contenders import Contender
from prediction.quantities import QUANTITIES
from prediction.tasks import Task
from prediction.training import Measured, Run, Trained, Training

SEEDS = (0, 1, 2)  # of the runs that count
SWEEP_SEEDS = (1000, 1001)  # of those that choose the rate
MOST_RATES = 10  # tried for one optimizer on one task
MEASURED_CONTENDER = "Adam"
_NUM_FIRST = 10  # losses by which a task is recognized
_TOLERANCE = 1e-3  # of them, relative: above what rounding changes in so few steps
_DIGITS = 6


@dataclass
class Ledger:
    """Runs and their results.

    Args:
        results: What was run.
        starts: By task and contender, how its runs begin: settings, then the first losses.
        versions: What the last of the runs was made with.
    """

    results: dict[Run, Trained | Measured] = field(default_factory=dict)
    starts: dict[str, list[Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, run: Run, result: Trained | Measured) -> None:
        """Keep a result."""
        self.results[run] = result
        self.versions = versions()

    def forget_changed(
        self, tasks: Sequence[Task], contenders: Sequence[Contender], log: Callable[[str], None]
    ) -> None:
        """Leave out runs of what begins otherwise now, and measurements of other quantities."""
        for task, contender in pairs(tasks, contenders):
            key, start = f"{task.name}/{contender.name}", _start(task, contender)
            if not _is_same(self.starts.get(key, start), start):
                log(f"{key} begins otherwise than it did: its runs are repeated")
                self.results = {
                    run: result
                    for run, result in self.results.items()
                    if (run.task, run.contender) != (task.name, contender.name)
                }
                del self.starts[key]
            self.starts.setdefault(key, start)
        names = {quantity.name for quantity in QUANTITIES}
        self.results = {
            run: result
            for run, result in self.results.items()
            if isinstance(result, Trained) or result.values.keys() == names
        }

    def forget_measurements(self) -> None:
        """Leave out what was measured, as after a change of the estimators."""
        self.results = {run: x for run, x in self.results.items() if isinstance(x, Trained)}

    def write(self, path: Path) -> None:
        """Write one run a line, in an order that does not depend on that of the runs."""
        rows = sorted(
            (json.dumps({**asdict(run), **_encoded(asdict(result))}, allow_nan=False)
             for run, result in self.results.items()),
        )  # fmt: skip
        starts = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.starts.items())]
        text = (
            f'{{"versions": {json.dumps(self.versions)},\n"starts": {{\n'
            + ",\n".join(starts)
            + '\n},\n"runs": [\n'
            + ",\n".join(rows)
            + "\n]}\n"
        )
        write_atomically(path, text, "predict: expected the file of results")


def read(path: Path) -> Ledger:
    """Read what :meth:`Ledger.write` wrote; empty where there is no file."""
    if not path.is_file():
        return Ledger()
    content = json.loads(path.read_text(encoding="utf-8"))
    ledger = Ledger(starts=content["starts"], versions=content["versions"])
    for row in content["runs"]:
        run = Run(*(row.pop(name) for name in Run.__dataclass_fields__))
        ledger.results[run] = Measured(**_decoded(row)) if run.measured else Trained(**row)
    return ledger


def pairs(
    tasks: Sequence[Task], contenders: Sequence[Contender]
) -> Iterator[tuple[Task, Contender]]:
    """Pair each task with the optimizers that suit its network."""
    for task in tasks:
        module = task.make()
        yield from ((task, contender) for contender in contenders if contender.suits(module))


def swept(ledger: Ledger, task: Task, contender: Contender) -> tuple[list[Rate], list[Run]]:
    """Give the rates tried so far that all ended, and the runs that the sweep needs next.

    The sweep begins with three rates a factor 2 apart, and goes on beyond the best one until that
    is inside. With ``MOST_RATES`` it ends as it is.
    """
    middle = task.lr * contender.factor
    rates = [rounded(middle / STEP), rounded(middle), rounded(middle * STEP)]
    while True:
        runs = {
            lr: [Run(task.name, contender.name, lr, seed) for seed in SWEEP_SEEDS] for lr in rates
        }
        missing = [run for of_rate in runs.values() for run in of_rate if run not in ledger.results]
        tried = [
            Rate(lr, tuple(_outcome(run, ledger) for run in of_rate))
            for lr, of_rate in runs.items()
            if not any(run in missing for run in of_rate)
        ]
        if missing:
            return tried, missing
        beyond = further(tried)
        if beyond is None or len(rates) >= MOST_RATES:
            return tried, []
        rates = sorted([*rates, beyond])


def chosen_rate(ledger: Ledger, task: Task, contender: Contender) -> float | None:
    """Give the best rate once the sweep has ended with it inside its grid."""
    tried, missing = swept(ledger, task, contender)
    found = best(tried) if tried else None
    if missing or found is None or found.train_loss is None or is_end(found, tried):
        return None
    return found.lr


def counting_runs(task: Task, contender: Contender, lr: float) -> list[Run]:
    """List the runs at the chosen rate whose losses count."""
    return [Run(task.name, contender.name, lr, seed) for seed in SEEDS]


def measured_runs(task: Task, lr: float) -> list[Run]:
    """List the measurements, on the beginnings of Adam's runs at its chosen rate."""
    return [Run(task.name, MEASURED_CONTENDER, lr, seed, measured=True) for seed in SEEDS]


def wanted(ledger: Ledger, tasks: Sequence[Task], contenders: Sequence[Contender]) -> list[Run]:
    """List the runs that can be made next: those of sweeps, and those at chosen rates."""
    runs: list[Run] = []
    for task, contender in pairs(tasks, contenders):
        runs += swept(ledger, task, contender)[1]
        lr = chosen_rate(ledger, task, contender)
        if lr is not None:
            runs += counting_runs(task, contender, lr)
            runs += measured_runs(task, lr) if contender.name == MEASURED_CONTENDER else []
    return [run for run in runs if run not in ledger.results]


def _outcome(run: Run, ledger: Ledger) -> Outcome:
    result = ledger.results[run]
    assert isinstance(result, Trained)
    return Outcome(run.lr, result.loss, None, result.seconds, run.seed)


def _start(task: Task, contender: Contender) -> list[Any]:
    """Tell how a run begins, in which all that its losses depend on has a part."""
    run = Run(task.name, contender.name, task.lr * contender.factor, SEEDS[0])
    losses = Training(run).steps(min(_NUM_FIRST, task.num_steps))
    settings = (task.num_steps, training.WARMUP, training.LAST_RATE, training.AVERAGED)
    return [*settings, *(float(f"{loss:.{_DIGITS}g}") for loss in losses)]


def _is_same(before: Sequence[float], now: Sequence[float]) -> bool:
    return len(before) == len(now) and all(
        math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(before, now, strict=True)
    )


def _encoded(value: Any) -> Any:
    """Keep six digits of every number, and name those that are not finite."""
    if isinstance(value, Mapping):
        return {key: _encoded(each) for key, each in value.items()}
    return encode(float(f"{value:.{_DIGITS}g}")) if isinstance(value, float) else value


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        name: {key: NON_FINITE.get(value, value) for key, value in of_name.items()}
        for name, of_name in row["values"].items()
    }
    return {**row, "values": values}
