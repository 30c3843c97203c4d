import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.comparisons import PAIR, SGD
from support.ranks import environment, in_two_processes
from support.small_gpt2 import BETAS, Prepare, sequences, trained_by_hand

import gpt2
from comparison import compare, variants
from settings import RecipeError


def test_an_interrupted_comparison_goes_on_and_finished_runs_are_not_repeated(comparison, capsys):
    (whole,) = compare.main(dataclasses.replace(comparison, name="whole"), gpt2.prepare, PAIR)
    first, second, third = Prepare(end=3), Prepare(), Prepare()
    with pytest.raises(KeyboardInterrupt):
        compare.main(comparison, first, PAIR)
    (resumed,) = compare.main(comparison, second, PAIR)
    assert (first.rates, second.rates) == ([0.001, 0.01, 0.01], [1e33])

    def losses(result):
        return [[(o.lr, o.train_loss, o.val_loss) for o in row] for row in result.sweep.values()]

    assert losses(resumed) == losses(whole)
    capsys.readouterr()
    assert compare.main(comparison, third, PAIR) == [resumed]
    assert third.rates == []
    assert "1/4 adam, lr 0.001, seed 0: train " in (output := capsys.readouterr().out)
    assert output.count("kept from before") == 4
    assert "After 3 steps, by optimizer" in output

    files = sorted(Path(comparison.runs_dir, comparison.name).glob("*-lr-*.json"))
    assert len(files) == 4
    records = [json.loads(file.read_text()) for file in files]
    assert {(r["config"]["optimizer"], r["config"]["lr"]) for r in records} == {
        ("adam", 0.001), ("adam", 0.01), ("sgd", 0.01), ("sgd", 1e33),
    }  # fmt: skip
    changed = Prepare(end=0)
    with pytest.raises(KeyboardInterrupt):
        compare.main(dataclasses.replace(comparison, seed=1), changed, PAIR)
    files[0].write_text("{")
    with pytest.raises(RecipeError, match=r"compare: expected a finished .* Delete it"):
        compare.main(comparison, gpt2.prepare, PAIR)


def test_other_text_under_the_same_name_is_another_run(comparison, tmp_path):
    file = tmp_path / "only.txt"
    file.write_text("abcde " * 500)
    comparison = dataclasses.replace(comparison, data=str(file))
    for text, number in (("abcde ", 1), ("abcde ", 0), ("abcdf ", 1)):
        file.write_text(text * 500)
        prepare = Prepare()
        compare.main(comparison, prepare, [dataclasses.replace(SGD, factors=(1.0,))])
        assert len(prepare.rates) == number


def test_a_run_that_diverged_stops_early_and_is_shown_as_such(comparison, capsys):
    comparison = dataclasses.replace(comparison, max_steps=50)
    steps = []

    def prepare(config, callbacks, **options):
        trainer, module, data = gpt2.prepare(config, callbacks, **options)
        steps.append(trainer)
        return trainer, module, data

    (result,) = compare.main(comparison, prepare, [SGD])
    ((good, lost),) = result.sweep.values()
    assert [trainer.global_step for trainer in steps] == [50, 10]
    assert (lost.train_loss, lost.val_loss) == (None, None)
    assert math.isfinite(good.train_loss)
    output = capsys.readouterr().out
    assert "2/2 sgd, lr 1e+33, seed 0: train diverged, val diverged, " in output
    assert "1e+33: diverged" in output
    assert math.isfinite(good.seconds_per_step)


def test_the_losses_of_a_run_are_those_of_a_plain_loop(comparison):
    comparison = dataclasses.replace(comparison, max_steps=25)
    (result,) = compare.main(
        comparison, gpt2.prepare, [dataclasses.replace(variants.ADAM, factors=(1.0,))]
    )
    ((outcome,),) = result.sweep.values()
    module, losses = trained_by_hand(comparison, lambda groups: torch.optim.Adam(groups, **BETAS))
    assert outcome.train_loss == pytest.approx(np.mean(losses[-20:]), rel=1e-6)
    _, validation = sequences(comparison.data, comparison.cache_dir)
    with torch.no_grad():
        mean = module.loss(torch.cat(validation))
    assert outcome.val_loss == pytest.approx(mean.item(), rel=1e-6)


def test_a_comparison_is_a_command_with_defaults_of_its_own(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compare, "main", lambda *choices: calls.append(choices))
    gpt2.run(["compare"])
    expected = dataclasses.replace(
        gpt2.Config(),
        name="gpt2-tiny-compare",
        batch_size=32,
        max_steps=250,
        weight_decay=0.0,
    )
    everything = list(variants.ALL)
    assert calls == [(expected, gpt2.prepare, list(variants.FEW), compare.Options(), everything)]
    args = ["--preset=small", "--max-steps", "7", "--warmup-steps", "2", "--variants=all"]
    gpt2.run(["compare", *args, "--batch-sizes", "[8,16]", "--seeds=2", "--budget", "30"])
    chosen = compare.Options("all", seeds=2, batch_sizes=(8, 16), budget=30.0)
    assert calls[1][2:] == (everything, chosen, everything)
    assert calls[1][0] == dataclasses.replace(
        gpt2.PRESETS["small"](), name="gpt2-small-compare", batch_size=128, max_steps=7,
        warmup_steps=2, weight_decay=0.0,
    )  # fmt: skip
    for args, text in ((["compare", "--help"], compare.ABOUT), (["--help"], "[compare]")):
        with pytest.raises(SystemExit):
            gpt2.run(args)
        assert text in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay: expected 0.0 in a comparison, got 0.1. A comp"),
        ({"optimizer": "sgd"}, "optimizer: expected 'adamw' in a comparison, got 'sgd'"),
        ({"rotation": "row"}, "rotation: expected None in a comparison"),
        ({"resume": "last"}, "resume: expected None in a comparison"),
    ],
)
def test_what_a_comparison_chooses_itself_is_refused(comparison, changes, message):
    with pytest.raises(RecipeError, match=message):
        compare.main(dataclasses.replace(comparison, **changes), Prepare(end=0))


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"seeds": -1}, {}, "seeds: expected at least 0, got -1"),
        ({"jobs": 0}, {}, "jobs: expected at least 1, got 0"),
        ({"points": 0}, {}, "points: expected at least 1"),
        ({"widen": -2}, {}, "widen: expected at least 0"),
        ({"sweep_seeds": 0}, {}, "sweep_seeds: expected at least 1"),
        ({"budget": 0.0}, {}, "budget: expected minutes above 0"),
        ({"jobs": 2}, {"devices": 2}, "jobs: expected 1, and no budget, on several devices"),
        ({"budget": 9.0}, {"devices": 2}, "jobs: expected 1, and no budget, on several devices"),
        ({"rounding": -1}, {}, "rounding: expected at least 0"),
        ({"rounding": 2, "seeds": 1}, {}, "rounding: expected at most seeds=1, got 2. Lower it"),
        ({"seeds": 1}, {"strategy": "fsdp2"}, "seeds: expected 0 beside fsdp2"),
    ],
)
def test_options_that_no_comparison_can_have_are_refused(comparison, options, changes, message):
    config = dataclasses.replace(comparison, **changes)
    with pytest.raises(RecipeError, match=message):
        compare.main(config, Prepare(end=0), PAIR, compare.Options(**options))


@pytest.mark.slow
def test_other_seeds_train_at_the_best_rate_and_tell_their_own_geometry(comparison, capsys):
    chosen = [variants.ADAM, variants.SGD, variants.ROTATED_SGD, variants.ROTATED_ADAM]
    chosen[3] = dataclasses.replace(chosen[3], factors=(1.0,))
    chosen[0] = dataclasses.replace(chosen[0], factors=(0.01, 1.0))
    chosen[1] = dataclasses.replace(chosen[1], factors=(100.0,))
    chosen[2] = dataclasses.replace(chosen[2], same_rate_as=chosen[1])
    options = compare.Options(seeds=1, rounding=1, points=2)
    (result,) = compare.main(comparison, gpt2.prepare, chosen, options)
    output = capsys.readouterr().out
    assert "adam, lr 0.01, seed 1: train" in output
    assert "sgd rotated global, lr 1, seed 0: train" in output
    assert "At the best rate, other seeds (1), and the geometry" in output
    assert "SGD with and without rotation, same seeds and rate: the training losses" in output
    assert "sgd, lr 1, seed 1, shaken: train" in output
    folder = Path(comparison.runs_dir, comparison.name)
    record = json.loads((folder / "comparison.json").read_text())
    assert (record["variants"][0]["lr"], record["variants"][0]["is_end"]) == (0.01, True)
    for variant, outcomes in result.shaken.items():
        (shaken,), (plain,) = outcomes, result.seeds[variant]
        assert (shaken.seed, shaken.geometry) == (1, ())
        assert shaken.train_loss == pytest.approx(plain.train_loss, rel=1e-4)
    for outcomes in result.seeds.values():
        ((seed, steps),) = [(o.seed, [row["step"] for row in o.geometry]) for o in outcomes]
        assert (seed, steps) == (1, [1, 3])
    by_variant = {variant: outcomes[0] for variant, outcomes in result.seeds.items()}
    assert [set(outcome.geometry[1]["rotated"]) for outcome in by_variant.values()] == [
        {"global 1"}, set(), set(), set(),
    ]  # fmt: skip
    assert "No conclusion: the best rate of Adam, 0.01, is an end of those tried." in output
    plain, turned = (by_variant[v].geometry[0] for v in chosen[1:3])
    # One step of SGD leads both to the same point, where a rotation keeps the largest eigenvalue
    # and not the (1,1)-norm.
    assert turned["lambda_max"] == pytest.approx(plain["lambda_max"], rel=0.02)
    assert turned["one_one_norm_per_param"] > 1.5 * plain["one_one_norm_per_param"]
    assert by_variant[chosen[2]].train_loss == pytest.approx(by_variant[chosen[1]].train_loss)


@pytest.mark.slow
def test_two_processes_compare_as_one(comparison, tmp_path):
    pair = [
        dataclasses.replace(v, factors=(0.5, 1.0)) for v in (variants.ADAM, variants.ROTATED_ADAM)
    ]
    options = compare.Options(seeds=1, widen=1)
    (alone,) = compare.main(comparison, gpt2.prepare, pair, options)

    def on_rank(rank):
        os.environ.update(environment(rank))
        together = dataclasses.replace(
            comparison, name="together", devices=2, micro_batch=1, strategy="ddp"
        )
        (result,) = compare.main(together, gpt2.prepare, pair, options)
        swept = [[(o.lr, o.train_loss) for o in rates] for rates in result.sweep.values()]
        ends = [outcomes[0].geometry[-1] for outcomes in result.seeds.values()]
        return swept, [(end["lambda_max"], end["smoothness"], end["rotated"]) for end in ends]

    first, second = in_two_processes(on_rank, tmp_path)
    assert first == second
    for found, rates in zip(first[0], alone.sweep.values(), strict=True):
        assert [lr for lr, _ in found] == [rate.lr for rate in rates]
        expected = [rate.train_loss for rate in rates]
        assert [loss for _, loss in found] == pytest.approx(expected, rel=1e-4)
    for (lambda_max, smoothness, rotated), outcomes in zip(
        first[1], alone.seeds.values(), strict=True
    ):
        end = outcomes[0].geometry[-1]
        assert lambda_max == pytest.approx(end["lambda_max"], rel=0.02)
        assert smoothness == pytest.approx(end["smoothness"], rel=0.02)
        assert rotated == pytest.approx(end["rotated"], rel=0.02)
    assert set(first[1][0][2]) == {"global 1"}
