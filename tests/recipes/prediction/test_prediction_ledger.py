import dataclasses
import json
import math

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file

from prediction import ledger as ledgers
from prediction.contenders import CONTENDERS
from prediction.ledger import MOST_RATES, SEEDS, SWEEP_SEEDS, Ledger, swept, wanted
from prediction.tasks import TASKS
from prediction.training import Measured, Run, Trained

TASK = dataclasses.replace(TASKS[0], lr=0.01)
ADAM, OTHER = (dataclasses.replace(c, factor=1.0) for c in CONTENDERS[:2])


def fill(ledger, loss, contenders=(ADAM,)):
    """Make all runs that are wanted, in rounds; the loss is a function of the rate."""
    rounds = []
    while runs := wanted(ledger, [TASK], contenders):
        rounds.append(runs)
        for run in runs:
            measured = Measured({}, "row", 1.0)
            ledger.results[run] = measured if run.measured else Trained(loss(run.lr), 1.0)
    return rounds


def distance(best):
    """The loss rises with the distance from the best rate, in factors of 2."""
    return lambda lr: abs(math.log2(lr / best))


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        (0.01, [0.005, 0.01, 0.02]),
        (0.04, [0.005, 0.01, 0.02, 0.04, 0.08]),
        (0.0025, [0.00125, 0.0025, 0.005, 0.01, 0.02]),
    ],
)
def test_a_sweep_goes_on_until_the_best_rate_is_inside(best, rates):
    ledger = Ledger()
    rounds = fill(ledger, distance(best))
    assert [rate.lr for rate in swept(ledger, TASK, ADAM)[0]] == rates
    assert ledgers.chosen_rate(ledger, TASK, ADAM) == best
    # Only then the seeds that count, which the sweep never had, are run; and Adam is measured.
    assert {run.seed for made in rounds[:-1] for run in made} == set(SWEEP_SEEDS)
    assert {(run.lr, run.seed, run.measured) for run in rounds[-1]} == {
        (best, seed, measured) for seed in SEEDS for measured in (False, True)
    }
    assert not set(SEEDS) & set(SWEEP_SEEDS)


def test_a_sweep_without_a_best_rate_inside_ends_and_leaves_the_optimizer_out():
    ledger = Ledger()
    rounds = fill(ledger, lambda lr: -lr)  # the larger the better, for ever
    tried, missing = swept(ledger, TASK, ADAM)
    assert (len(tried), missing) == (MOST_RATES, [])
    assert ledgers.chosen_rate(ledger, TASK, ADAM) is None
    assert {run.seed for made in rounds for run in made} == set(SWEEP_SEEDS)


def test_a_rate_with_which_a_seed_diverged_is_not_the_best():
    ledger = Ledger()
    fill(ledger, lambda lr: None if lr > 0.011 else -lr)
    assert ledgers.chosen_rate(ledger, TASK, ADAM) == 0.01
    fill(nowhere := Ledger(), lambda lr: None)
    assert ledgers.chosen_rate(nowhere, TASK, ADAM) is None
    assert len(swept(nowhere, TASK, ADAM)[0]) == MOST_RATES


def test_only_adam_is_measured():
    ledger = Ledger()
    fill(ledger, distance(0.01), (ADAM, OTHER))
    assert {run.contender for run in ledger.results if run.measured} == {ADAM.name}
    assert {run.contender for run in ledger.results} == {ADAM.name, OTHER.name}


def test_a_file_gives_back_what_was_written_in_one_order(tmp_path):
    runs = {
        Run("vit", "SGD", 0.1, 0): Trained(None, 1.5),
        Run("vit", "Adam", 0.001, 0): Trained(0.125, 2.5),
        Run("vit", "Adam", 0.001, 0, True): Measured(
            {"N": {"row": math.inf, "tensor": math.nan, "global": -1.5}}, "row", 0.5
        ),
    }
    ledger = Ledger(starts={"vit/SGD": [0.1, 2.0]})
    for run, result in runs.items():
        ledger.add(run, result)
    ledger.write(first := tmp_path / "first.json")
    found = ledgers.read(first)
    assert str(found) == str(Ledger(found.results, ledger.starts, ledger.versions))
    assert {run: str(result) for run, result in found.results.items()} == {
        run: str(result) for run, result in runs.items()
    }
    found.results = dict(reversed(found.results.items()))
    found.write(second := tmp_path / "second.json")
    assert second.read_text() == first.read_text()
    assert len(json.loads(first.read_text())["runs"]) == 3
    assert ledgers.read(tmp_path / "none.json") == Ledger()


def test_runs_of_what_begins_otherwise_are_repeated_and_others_kept():
    ledger, said = Ledger(), []
    ledger.forget_changed([TASK], [ADAM, OTHER], said.append)
    runs = [Run(TASK.name, c.name, 0.01, 0) for c in (ADAM, OTHER)]
    measured = Run(TASK.name, ADAM.name, 0.01, 0, True)
    for run in runs:
        ledger.add(run, Trained(1.0, 1.0))
    ledger.add(measured, Measured({"of another list": {}}, "row", 1.0))
    ledger.forget_changed([TASK], [ADAM, OTHER], said.append)
    assert (list(ledger.results), said) == (runs, [])  # what was measured is measured again
    changed = dataclasses.replace(ADAM, factor=30.0)  # not the optimizer, but as if it were
    ledger.forget_changed([TASK], [changed, OTHER], said.append)
    assert list(ledger.results) == runs[1:]
    assert said == [f"{TASK.name}/Adam begins otherwise than it did: its runs are repeated"]
    ledger.add(measured, Measured({}, "row", 1.0))
    ledger.forget_measurements()
    assert list(ledger.results) == runs[1:]
