import dataclasses
import math
import shutil
import time

import numpy as np
import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch
from support.recipes import RECIPES

import predict
from comparison.jobs import in_jobs
from lightning_linf.partition import Partition
from prediction import ledger as ledgers
from prediction import networks, tasks, training
from prediction.contenders import CONTENDERS, FINER_IS_BETTER
from prediction.ledger import Ledger
from prediction.page import page
from prediction.protocol import protocol
from prediction.quantities import QUANTITIES
from prediction.training import Run, Training, carry_out


def test_the_halves_are_disjoint_equal_and_fixed():
    halves = {half: {t.name for t in tasks.TASKS if t.half == half} for half in ("choose", "test")}
    assert halves == {
        "choose": {"word-llama", "vit", "resnet", "tumours", "friedman", "autoencoder"},
        "test": {"char-gpt", "mixer", "char-lstm", "waves", "factors", "contrast"},
    }
    assert len(tasks.TASKS) == 12


def test_the_protocol_is_the_page_that_is_kept():
    kept = RECIPES.parent / "docs" / "results" / "prediction-protocol.md"
    assert kept.read_text(encoding="utf-8") == "\n".join(protocol()) + "\n"


@pytest.mark.parametrize("name", [task.name for task in tasks.TASKS])
def test_every_task_learns_and_has_all_partitions(name):
    task = tasks.task(name)
    losses = list(Training(Run(name, "Adam", task.lr, 7)).steps(40))
    assert np.mean(losses[-5:]) < losses[0]
    assert 2_000 <= task.num_params <= 100_000
    assert 100 <= task.num_steps <= 400
    module = task.make()
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    for partition in ("row", "tensor"):
        Partition.of(module, partition).check(names, shapes)


def test_the_seed_fixes_weights_and_data_and_another_changes_both():
    first, again, other = (
        list(Training(Run("friedman", "rotated Adam", 0.01, seed)).steps(3)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(Training(Run("friedman", "Adam", 0.01, 1)).steps(1))
    assert torch.rand(1) == expected  # nobody else's numbers are drawn


def test_a_training_is_a_plain_loop(monkeypatch):
    """Adam on the autoencoder, written out, with warm-up and cosine."""
    task = dataclasses.replace(tasks.task("autoencoder"), num_steps=40)
    torch.manual_seed(5)
    module = task.make()
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(module.parameters(), betas=(0.9, 0.95))
    losses = []
    for step in range(40):
        share = (step + 1) / 2 if step < 2 else 0.55 + 0.45 * math.cos(math.pi * (step - 2) / 38)
        optimizer.param_groups[0]["lr"] = 0.01 * share
        loss = task.loss(module, task.draw(task.batch_size, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    monkeypatch.setattr(tasks, "TASKS", (task,))
    found = list(Training(Run("autoencoder", "Adam", 0.01, 5)).steps(40))
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=0)
    assert training.final_loss(losses) == pytest.approx(np.mean(losses[-4:]))


def test_every_contender_is_what_its_name_says():
    made = {
        c.name: type(Training(Run("tumours", c.name, 0.01, 0)).optimizer).__name__
        for c in CONTENDERS
    }
    assert made == {
        "Adam": "Adam", "row": "BlockwiseAdam", "tensor": "BlockwiseAdam",
        "rotated Adam": "Reparameterized", "AdaSGD": "AdaSGD", "SGD": "SGD", "Signum": "Signum",
        "Muon": "MuonWithAdamW",
    }  # fmt: skip
    sgd = Training(Run("tumours", "SGD", 0.01, 0)).optimizer
    assert sgd.param_groups[0]["momentum"] == training.BETAS[0]
    assert {c.reads for c in CONTENDERS} == set(FINER_IS_BETTER)
    rotations = [
        repr(Training(Run("tumours", "rotated Adam", 0.01, seed)).optimizer.param_groups)
        for seed in (0, 1)
    ]
    assert rotations[0] != rotations[1]


def test_a_rotary_embedding_turns_by_the_position():
    x = torch.randn(5, 6, dtype=torch.float64)
    turned = networks.rotated(x)
    pairs, expected = torch.complex(x[:, :3], x[:, 3:]), []
    for position in range(5):
        angles = position * 10_000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
        expected.append(pairs[position] * torch.polar(torch.ones(3, dtype=torch.float64), angles))
    found = torch.complex(turned[:, :3], turned[:, 3:])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["word-llama", "char-gpt", "char-lstm"])
def test_language_models_do_not_see_what_they_predict(name):
    task = tasks.task(name)
    module = task.make()
    (tokens,) = task.draw(2, torch.Generator().manual_seed(0))
    tokens = tokens[:, :-1]
    changed = tokens.clone()
    changed[:, 10:] = 3
    before, after = module(tokens), module(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_a_run_that_diverges_stops_and_has_no_loss():
    assert carry_out(Run("friedman", "SGD", 1e30, 0)).loss is None


@pytest.fixture
def small(monkeypatch):
    """Two tasks of a few steps, and two optimizers."""
    pair = tuple(
        dataclasses.replace(tasks.task(name), num_steps=steps, batch_size=8)
        for name, steps in (("tumours", 4), ("factors", 2))
    )
    monkeypatch.setattr(tasks, "TASKS", pair)
    monkeypatch.setattr(ledgers, "MOST_RATES", 4)
    return pair, CONTENDERS[:3]


def test_all_runs_are_made_once_kept_and_written_about(small, tmp_path, monkeypatch):
    pair, contenders = small
    path = tmp_path / "prediction.json"
    ledger = Ledger()
    ledger.forget_changed(pair, contenders, print)
    predict.make(ledger, path, pair, contenders, 1, math.inf)
    assert ledgers.wanted(ledger, pair, contenders) == []
    again = ledgers.read(path)
    again.forget_changed(pair, contenders, pytest.fail)
    assert again.results.keys() == ledger.results.keys()
    monkeypatch.setattr(predict, "carry_out", pytest.fail)
    predict.make(again, path, pair, contenders, 1, math.inf)  # nothing is left to make
    text = "\n".join(page(again, pair, contenders))
    assert f"{len(ledger.results)} trainings and measurements" in text
    assert "Not finished" not in text
    assert "| tumours | " in text
    assert f"torch {torch.__version__}" in text


@pytest.mark.slow
def test_two_jobs_find_what_one_finds():
    runs = [Run("tumours", name, 0.01, 0) for name in ("Adam", "rotated Adam", "row")]
    alone, together = (dict(in_jobs(carry_out, runs, n, math.inf)) for n in (1, 2))
    assert {i: trained.loss for i, trained in together.items()} == {
        i: trained.loss for i, trained in alone.items()
    }


def test_time_that_is_up_leaves_the_rest_to_the_next_call(small, tmp_path, monkeypatch, capsys):
    pair, contenders = small
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def one_minute(run):
        now[0] += 60
        return carry_out(run)

    monkeypatch.setattr(predict, "carry_out", one_minute)
    path = tmp_path / "prediction.json"
    predict.make(Ledger(), path, pair, contenders, 1, 150)
    assert len(ledgers.read(path).results) == 3
    assert "Time is up: " in capsys.readouterr().out
    predict.make(kept := ledgers.read(path), path, pair, contenders, 1, 300)
    assert len(kept.results) == 6
    text = "\n".join(page(kept, pair, contenders))
    assert "**Not finished**: " in text
    assert "Nothing yet: " in text


def test_a_measurement_gives_every_quantity_of_every_geometry(small):
    measured = carry_out(Run("tumours", "Adam", 0.01, 0, True))
    assert list(measured.values) == [quantity.name for quantity in QUANTITIES]
    for name, of_name in measured.values.items():
        assert set(of_name) == set(FINER_IS_BETTER), name
        missing = {read for read, value in of_name.items() if math.isnan(value)}
        expected = {"coordinate rotated"} if name == "secant" else set()
        without_spectral = ("Λ, lower end", "advantage by Λ, from above",
                            "step_advantage in noise", "advantage by H", "H, upper end", "secant",
                            "noise scale", "R²")  # fmt: skip
        expected |= {"spectral"} if name in without_spectral else set()
        assert missing == expected, name
    lower, upper = (measured.values[f"N, {end} end"] for end in ("lower", "upper"))
    assert all(lower[read] <= upper[read] for read in lower)
    assert lower["coordinate"] <= upper["row"] <= upper["global"] * 1.0001
    assert measured.advised in FINER_IS_BETTER


def test_muon_runs_where_there_are_hidden_matrices():
    suited = {task.name for task, c in ledgers.pairs(tasks.TASKS, CONTENDERS) if c.name == "Muon"}
    assert {task.name for task in tasks.TASKS} - suited == {"resnet", "factors"}


@pytest.mark.slow
def test_what_is_measured_is_the_run_it_predicts(small):
    """The measurement stands where the run of the same rate and seed stands after a tenth."""
    seen = []
    quantity = dataclasses.replace(QUANTITIES[0], read=lambda r: seen.append(r) or 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "QUANTITIES", (quantity,))
        carry_out(Run("tumours", "Adam", 0.01, 0, True))
    run = Training(Run("tumours", "Adam", 0.01, 0))
    list(run.steps(1))
    batches = [run.batch() for _ in range(training.NUM_BATCHES)]
    loss = np.mean([run.task.loss(run.module, batch).item() for batch in batches])
    assert seen[0].report.loss == pytest.approx(loss, rel=1e-5)
    assert seen[-1].report.loss == pytest.approx(loss, rel=1e-5)  # in rotated coordinates, too


def test_wrong_flags_are_refused(tmp_path, capsys):
    for flags in (["--jobs", "0"], ["--budget", "0"], ["--budget", "nan"]):
        with pytest.raises(SystemExit):
            predict.main(flags, tmp_path)
        assert "expected --jobs of at least 1 and a --budget above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_pages_are_those_of_the_committed_runs(tmp_path):
    shutil.copy(predict.FOLDER / "prediction.json", tmp_path)
    predict.main(["--page"], tmp_path)
    for name in ("prediction.md", "prediction-protocol.md"):
        assert (tmp_path / name).read_text() == (predict.FOLDER / name).read_text()


def test_pages_are_written_without_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "make", pytest.fail)
    predict.main(["--page"], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"prediction.md", "prediction-protocol.md"}
