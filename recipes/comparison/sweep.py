"""The learning rates tried for each optimizer, and the best of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from comparison.runs import Runs
from comparison.single_run import Outcome, Run
from comparison.variants import Variant
from training.config import TrainingConfig

STEP = 2.0  # factor from the best rate, where it is the largest or smallest, to the next one


@dataclass(frozen=True)
class Rate:
    """A learning rate and the runs with it, one a seed; a loss is None if a run diverged."""

    lr: float
    outcomes: tuple[Outcome, ...]

    @property
    def train_loss(self) -> float | None:
        """Mean over the seeds."""
        return _mean([outcome.train_loss for outcome in self.outcomes])

    @property
    def val_loss(self) -> float | None:
        """Mean over the seeds."""
        return _mean([outcome.val_loss for outcome in self.outcomes])

    @property
    def seconds_per_step(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(outcome.seconds_per_step for outcome in self.outcomes)


def best(rates: Sequence[Rate]) -> Rate:
    """Choose the rate with the least mean training loss; if all diverged, the first."""
    return min(rates, key=lambda rate: inf if rate.train_loss is None else rate.train_loss)


def is_end(chosen: Rate, rates: Sequence[Rate]) -> bool:
    """Tell whether the rate is the largest or smallest tried: a better one may lie beyond."""
    tried = [rate.lr for rate in rates]
    is_outer = len(tried) > 1 and chosen.lr in (min(tried), max(tried))
    return is_outer and chosen.train_loss is not None


def sweep(
    config: TrainingConfig, runs: Runs, variants: Sequence[Variant], num_seeds: int, widen: int
) -> dict[Variant, list[Rate]]:
    """Run every variant at its learning rates.

    While the best rate is the largest or the smallest tried, one beyond it is added. A variant with
    ``same_rate_as`` runs only at the best rate of that other variant.

    Args:
        config: Settings that all runs share; the rates are its ``lr`` times a variant's factors.
        runs: Makes the runs that were not made before.
        variants: The optimizers to run.
        num_seeds: Runs at each rate, with the seeds ``config.seed`` and up.
        widen: How many rates may be added for a variant.
    """
    rates = {
        variant: [rounded(config.lr * factor) for factor in variant.factors]
        for variant in variants
        if variant.same_rate_as is None
    }
    for num_left in range(widen, -1, -1):
        tried = _run_all(config, runs, rates, num_seeds)
        beyond = {v: lr for v, found in tried.items() if (lr := further(found)) is not None}
        if not (beyond and num_left):
            break
        for variant, lr in beyond.items():
            rates[variant] = sorted([*rates[variant], lr])
    shared = {v: [best(tried[v.same_rate_as]).lr] for v in variants if v.same_rate_as is not None}
    tried |= _run_all(config, runs, shared, num_seeds)
    return {variant: tried[variant] for variant in variants}


def _run_all(
    config: TrainingConfig, runs: Runs, rates: dict[Variant, list[float]], num_seeds: int
) -> dict[Variant, list[Rate]]:
    pairs = [(variant, lr) for variant in rates for lr in rates[variant]]
    made = [
        Run(replace(chosen(config, *pair), seed=config.seed + i))
        for pair in pairs
        for i in range(num_seeds)
    ]
    outcomes = iter(runs.finish(made))
    tried: dict[Variant, list[Rate]] = {variant: [] for variant in rates}
    for variant, lr in pairs:
        tried[variant].append(Rate(lr, tuple(next(outcomes) for _ in range(num_seeds))))
    return tried


def chosen(config: TrainingConfig, variant: Variant, lr: float) -> TrainingConfig:
    """Give the settings of a variant's run, which validates only at its end."""
    return replace(config, **variant.choices, lr=lr, val_every=config.max_steps)


def further(rates: Sequence[Rate]) -> float | None:
    """Give the rate beyond the best one, if that is the largest or the smallest tried."""
    tried = sorted(rate.lr for rate in rates)
    found = best(rates)
    if found.train_loss is None or found.lr == tried[0]:
        return rounded(tried[0] / STEP)
    return rounded(tried[-1] * STEP) if found.lr == tried[-1] else None


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None]
    return statistics.fmean(finite) if len(finite) == len(losses) else None


def rounded(lr: float) -> float:
    """Keep three digits of a rate, so that it is written as it is used."""
    return float(f"{lr:.3g}")
