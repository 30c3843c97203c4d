"""Test which quantity, measured early in Adam's run, predicts how optimizers end on small tasks.

    python recipes/predict.py --jobs 2                 # all runs: about an hour of two cores
    python recipes/predict.py --jobs 2 --budget 30     # for 30 minutes; the same command goes on
    python recipes/predict.py --remeasure              # after a change of the estimators
    python recipes/predict.py --page                   # only the two pages again

Runs are kept in docs/results/prediction.json, from which the page prediction.md beside it is made.
What is run and how it is judged stands in prediction-protocol.md, which came first.
Needs, in the clone: python -m pip install -e '.[recipes]'
"""

import requirements  # noqa: F401  # first of all, to say what is missing

# isort: split
import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from comparison.jobs import in_jobs
from comparison.runs import say
from comparison.single_run import loss_text
from prediction import ledger as ledgers
from prediction.contenders import CONTENDERS, Contender
from prediction.ledger import Ledger, wanted
from prediction.page import page
from prediction.protocol import protocol
from prediction.tasks import TASKS, Task
from prediction.training import Measured, Run, Trained, carry_out

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"


def main(args: Sequence[str], folder: Path = FOLDER) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on one thread each")
    parser.add_argument("--budget", type=float, default=math.inf,
                        help="minutes after which no further run is begun")  # fmt: skip
    parser.add_argument("--page", action="store_true", help="only write the pages again")
    parser.add_argument("--remeasure", action="store_true",
                        help="forget what was measured, not what was trained")  # fmt: skip
    choices = parser.parse_args(args)
    if choices.jobs < 1 or not choices.budget > 0:
        parser.error("expected --jobs of at least 1 and a --budget above 0. Leave them out.")
    path = folder / "prediction.json"
    ledger = ledgers.read(path)
    if choices.remeasure:
        ledger.forget_measurements()
    if not choices.page:
        deadline = time.monotonic() + 60 * choices.budget
        ledger.forget_changed(TASKS, CONTENDERS, say)
        make(ledger, path, TASKS, CONTENDERS, choices.jobs, deadline)
        ledger = ledgers.read(path)  # which keeps fewer digits, so that the pages follow from it
    for name, lines in (
        ("prediction-protocol.md", protocol()),
        ("prediction.md", page(ledger, TASKS, CONTENDERS)),
    ):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        say(f"Written: {folder / name}")


def make(
    ledger: Ledger,
    path: Path,
    tasks: Sequence[Task],
    contenders: Sequence[Contender],
    num_jobs: int,
    deadline: float,
) -> None:
    """Make runs until none is wanted or the deadline is over, and keep each when it has ended.

    Args:
        ledger: Gets the results.
        path: Where it is written.
        tasks: What is trained.
        contenders: The optimizers.
        num_jobs: Runs at a time.
        deadline: Value of :func:`time.monotonic` after which no run is begun.
    """
    while (runs := wanted(ledger, tasks, contenders)) and time.monotonic() <= deadline:
        say(f"{len(runs)} runs can be made now, {len(ledger.results)} are kept from before")
        for i, result in in_jobs(carry_out, runs, num_jobs, deadline):
            ledger.add(runs[i], result)
            ledger.write(path)
            say(f"{runs[i].task}, {runs[i].contender}, {runs[i].lr:g}: {_text(runs[i], result)}")
    if runs:
        say(f"Time is up: {len(runs)} runs are wanted. The same command goes on with them.")


def _text(run: Run, result: Trained | Measured) -> str:
    if isinstance(result, Measured):
        return f"seed {run.seed}, measured, {result.seconds:.1f} s"
    return f"seed {run.seed}, loss {loss_text(result.loss)}, {result.seconds:.1f} s"


if __name__ == "__main__":
    main(sys.argv[1:])
