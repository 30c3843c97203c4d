import dataclasses
import math

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file

import gpt2
from comparison import compare, runs, sentences, single_run, sweep, variants


def test_the_best_rate_is_that_of_the_least_mean_over_the_seeds_of_the_sweep(
    comparison, monkeypatch
):
    losses = {(0.1, 3): 1.0, (0.1, 4): 4.0, (0.2, 3): 2.0, (0.2, 4): 2.5, (0.4, 3): 0.5}
    made = []

    def ended(self, these):
        made.append([(run.config.optimizer, run.config.lr, run.config.seed) for run in these])
        found = [losses.get((run.config.lr, run.config.seed)) for run in these]
        return [
            single_run.Outcome(run.config.lr, x, x, 0.1)
            for run, x in zip(these, found, strict=True)
        ]

    monkeypatch.setattr(runs.Runs, "finish", ended)
    config = dataclasses.replace(comparison, seed=3, lr=0.1)
    adam = dataclasses.replace(variants.ADAM, factors=(1, 2, 4))
    sgd = dataclasses.replace(variants.SGD, same_rate_as=adam)
    options = compare.Options(sweep_seeds=2)
    (result,) = compare.main(config, gpt2.prepare, [sgd, adam], options)
    assert [rate.train_loss for rate in result.sweep[adam]] == [2.5, 2.25, None]
    assert sweep.best(result.sweep[adam]).lr == 0.2
    assert made == [
        [("adam", lr, seed) for lr in (0.1, 0.2, 0.4) for seed in (3, 4)],
        [("sgd", 0.2, 3), ("sgd", 0.2, 4)],
    ]
    pair = {variants.ADAM: result.sweep[adam], variants.ROTATED_ADAM: result.sweep[adam]}
    assert "of the rates tried, mean of 2 seeds: Adam" in sentences.comparison_sentence(pair, 3)


def test_rates_are_added_beyond_an_end_until_it_is_none_or_enough(comparison, monkeypatch):
    def ended(self, made):
        return [outcome_at(run.config.lr) for run in made]

    def outcome_at(lr):  # best at 1
        loss = None if lr > 3 else abs(math.log10(lr))
        return single_run.Outcome(lr, loss, loss, 0.1)

    monkeypatch.setattr(runs.Runs, "finish", ended)
    for factors, widen, expected in (
        ((15.0, 30.0, 60.0), 5, [0.15, 0.3, 0.6, 1.2, 2.4]),
        ((1000.0, 2000.0), 1, [5, 10, 20]),
        ((1000.0, 2000.0), 9, [0.625, 1.25, 2.5, 5, 10, 20]),
        ((10.0, 100.0), 0, [0.1, 1]),
    ):
        variant = dataclasses.replace(variants.SGD, factors=factors)
        options = compare.Options(widen=widen)
        (result,) = compare.main(comparison, gpt2.prepare, [variant], options)
        rates = [outcome.lr for outcome in result.sweep[variant]]
        assert rates == pytest.approx(expected), factors
