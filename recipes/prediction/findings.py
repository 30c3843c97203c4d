"""What the runs say of each quantity: how well it orders the optimizers, beside what is free."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from comparison.ranks import Values, permutation_p, sign_flip_p, spearman
from prediction.contenders import FINER_IS_BETTER, Contender
from prediction.ledger import (
    MEASURED_CONTENDER,
    Ledger,
    chosen_rate,
    counting_runs,
    measured_runs,
)
from prediction.quantities import QUANTITIES
from prediction.tasks import Half, Task
from prediction.training import Measured, Trained

ORDER_ON_CHOOSING = "order on the choosing half"
_FEWEST = 3  # optimizers, to rank them


@dataclass(frozen=True)
class Ended:
    """How the optimizers ended on a task, and what was measured on it.

    Args:
        task: Its name.
        half: Whether it helps to choose the rule, or tests it.
        contenders: The optimizers whose best rate is inside its grid.
        reads: For each the geometry that it is read as.
        losses: Final losses, inf where a run diverged. Shape (seeds, optimizers).
        values: By quantity and geometry, a number for each seed.
        larger_is_better: By quantity.
        advised: What the tool advised, for each seed.
    """

    task: str
    half: Half
    contenders: tuple[str, ...]
    reads: tuple[str, ...]
    losses: Values
    values: Mapping[str, Mapping[str, Sequence[float]]]
    larger_is_better: Mapping[str, bool]
    advised: tuple[str, ...] = ()

    def predicted(self, quantity: str) -> Values:
        """Give a quantity for each seed and optimizer, larger for better; NaN if not measured."""
        values, sign = self.values[quantity], 1 if self.larger_is_better[quantity] else -1
        missing = [math.nan] * len(self.losses)
        return sign * np.array([values.get(read, missing) for read in self.reads]).T


Prediction = Callable[[Ended], Values]  # (seeds, optimizers), NaN where there is none


def ended_tasks(
    ledger: Ledger, tasks: Sequence[Task], contenders: Sequence[Contender]
) -> list[Ended]:
    """Collect the tasks on which everything was run that can be."""
    found = []
    for task in tasks:
        rates = {c: lr for c in contenders if (lr := chosen_rate(ledger, task, c)) is not None}
        runs = {c: counting_runs(task, c, lr) for c, lr in rates.items()}
        adam = next((lr for c, lr in rates.items() if c.name == MEASURED_CONTENDER), None)
        measured = [] if adam is None else measured_runs(task, adam)
        needed = [run for of_one in (*runs.values(), measured) for run in of_one]
        if not measured or len(rates) < _FEWEST or not all(r in ledger.results for r in needed):
            continue
        readings = [ledger.results[run] for run in measured]
        found.append(
            Ended(
                task.name,
                task.half,
                tuple(c.name for c in rates),
                tuple(c.reads for c in rates),
                np.array([[_loss(ledger.results[run]) for run in runs[c]] for c in rates]).T,
                {
                    q.name: {
                        read: [_values(reading)[q.name][read] for reading in readings]
                        for read in _values(readings[0])[q.name]
                    }
                    for q in QUANTITIES
                },
                {q.name: q.larger_is_better for q in QUANTITIES},
                tuple(reading.advised for reading in readings if isinstance(reading, Measured)),
            )
        )
    return found


def _loss(result: Trained | Measured) -> float:
    assert isinstance(result, Trained)
    return math.inf if result.loss is None else result.loss


def _values(result: Trained | Measured) -> Mapping[str, Mapping[str, float]]:
    assert isinstance(result, Measured)
    return result.values


def finer_is_better(ended: Ended) -> Values:
    """Predict what needs no measurement: the finer the geometry, the better."""
    order = [-float(FINER_IS_BETTER.index(read)) for read in ended.reads]
    return np.tile(order, (len(ended.losses), 1))


def order_of(ended: Sequence[Ended]) -> Prediction:
    """Predict on every task the mean order that optimizers had on other tasks."""
    ranks: dict[str, list[float]] = {}
    for each in ended:
        for name, of_name in zip(each.contenders, rankdata(each.losses, axis=1).T, strict=True):
            ranks.setdefault(name, []).extend(of_name)

    def predicted(new: Ended) -> Values:
        order = [-float(np.mean(ranks.get(name, math.nan))) for name in new.contenders]
        return np.tile(order, (len(new.losses), 1))

    return predicted


def other_seeds(ended: Ended) -> Values:
    """Predict for each seed the order of the mean losses of the others: no chance is left out."""
    ranks = rankdata(ended.losses, axis=1)
    return np.asarray(ranks - ranks.sum(axis=0, keepdims=True))


def best_of_ties(ended: Ended) -> Values:
    """Give the order that was found, as far as optimizers that read one geometry can have it."""
    ranks = rankdata(ended.losses, axis=1)
    reads = np.array(ended.reads)
    means = [ranks[:, reads == read].mean(axis=1) for read in ended.reads]
    return -np.stack(means, axis=1)


@dataclass(frozen=True)
class Score:
    """How well a prediction orders the optimizers on some tasks.

    Args:
        by_task: Mean of Spearman's rho over the seeds of each task.
        free: The same of "finer is better", among the same optimizers.
        p: How often optimizers at random would be ordered as well (`ranks.permutation_p`).
        p_above_free: How often chance would give as large a lead over `free`, by task
            (`ranks.sign_flip_p`).
    """

    by_task: Mapping[str, float]
    free: Mapping[str, float]
    p: float
    p_above_free: float

    @property
    def rho(self) -> float:
        """Mean over tasks."""
        return float(np.mean(list(self.by_task.values())))

    @property
    def free_rho(self) -> float:
        """Mean over tasks of "finer is better"."""
        return float(np.mean(list(self.free.values())))

    @property
    def lead(self) -> float:
        """By how much it is better than "finer is better"."""
        return self.rho - self.free_rho

    @property
    def lead_error(self) -> float:
        """Standard error of the lead over tasks; NaN of one task."""
        leads = [self.by_task[task] - self.free[task] for task in self.by_task]
        return float(np.std(leads, ddof=1) / len(leads) ** 0.5) if len(leads) > 1 else math.nan


def score(prediction: Prediction, ended: Sequence[Ended]) -> Score | None:
    """Score a prediction; None if no task has enough optimizers of which it says something."""
    pairs: dict[str, tuple[Values, Values]] = {}
    free: dict[str, float] = {}
    for each in ended:
        predicted = prediction(each)
        is_there = ~np.isnan(predicted).any(axis=0)  # in every seed
        if is_there.sum() >= _FEWEST:
            losses = each.losses[:, is_there]
            pairs[each.task] = predicted[:, is_there], losses
            free[each.task] = float(spearman(finer_is_better(each)[:, is_there], losses).mean())
    if not pairs:
        return None
    by_task = {task: float(spearman(*pair).mean()) for task, pair in pairs.items()}
    leads = np.array([by_task[task] - free[task] for task in by_task])
    return Score(by_task, free, permutation_p(list(pairs.values())), sign_flip_p(leads))


def choose(ended: Sequence[Ended]) -> str:
    """Choose the quantity with the largest lead over "finer is better" on the choosing half."""
    leads = {}
    for quantity in ended[0].values:
        found = score(_reader(quantity), halves(ended)["choose"])
        leads[quantity] = -math.inf if found is None else found.lead
    return max(leads, key=leads.__getitem__)


def halves(ended: Sequence[Ended]) -> dict[Half, list[Ended]]:
    """Part the tasks in those that choose and those that test."""
    return {
        "choose": [each for each in ended if each.half == "choose"],
        "test": [each for each in ended if each.half == "test"],
    }


def _reader(quantity: str) -> Prediction:
    return lambda ended: ended.predicted(quantity)


def predictions(ended: Sequence[Ended]) -> dict[str, Prediction]:
    """List all that is scored: every quantity, then what is free, then what bounds both."""
    return {
        **{name: _reader(name) for name in ended[0].values},
        "finer is better": finer_is_better,
        ORDER_ON_CHOOSING: order_of(halves(ended)["choose"]),
        "order of the other seeds": other_seeds,
        "best that the ties allow": best_of_ties,
    }
