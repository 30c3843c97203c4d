import dataclasses
import json
import math

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch

import quadratic
from command_line import parse as parse_command_line
from settings import RecipeError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return quadratic.Config(
        dim=40, num_large=4, angles=(0.0, 0.2, 1.0), max_steps=60, runs_dir=str(folder)
    )


@pytest.fixture(scope="module")
def rows(config):
    return quadratic.study(config, config.angles)


def losses(rows, name):
    return [row["best"][name]["loss"] for row in rows]


def test_the_losses_are_those_of_single_runs_on_the_plain_quadratic(config):
    torch.manual_seed(0)
    matrix = torch.randn(40, 40, dtype=torch.float64)
    hessian, start = matrix @ matrix.T / 40, torch.randn(40, dtype=torch.float64)
    other = torch.eye(40, dtype=torch.float64)
    _, found = quadratic.final_losses(
        torch.stack([other, hessian]), torch.stack([2 * start, start]), config
    )
    for method in quadratic.METHODS:
        lr = method.max_lr * 2.0**-5
        x = start.clone().requires_grad_()
        optimizer = method.make([x], lr, config.beta2)
        for _ in range(config.max_steps):
            optimizer.zero_grad()
            (x @ hessian @ x / 2).backward()
            optimizer.step()
        assert found[method.name][5] == pytest.approx(
            (x @ hessian @ x / 2).item(), rel=1e-4
        )  # steps of Adam enlarge rounding


def test_all_angles_are_one_problem_with_growing_one_one_norm(config, rows):
    spectrum = quadratic.spectrum(config)
    assert spectrum.tolist()[:6] == [1.0] * 5 + [0.25]
    norms = [row["one_one_norm_per_param"] for row in rows]
    assert norms[0] == pytest.approx(float(spectrum.sum()) / 40)
    assert norms == sorted(norms)
    skew = quadratic.skew_symmetric(config)
    torch.testing.assert_close(skew, -skew.T)


def test_sgd_does_not_notice_the_angle_and_adam_loses_by_it(rows):
    for name in ("SGD", "SGD, momentum 0.9", "AdaSGD, beta1 = 0.9"):
        torch.testing.assert_close(
            losses(rows, name), [losses(rows, name)[0]] * 3, rtol=1e-6, atol=0
        )
    for name in ("Adam, beta1 = 0", "Adam, beta1 = 0.9"):
        first, _, last = losses(rows, name)
        assert last > 2 * first


def test_the_best_rate_is_found_and_an_end_is_told():
    best = quadratic._best([math.inf, 3.0, 2.0, 4.0], "SGD")
    assert best == {"lr": 2.0, "loss": 2.0, "is_end": False}
    assert quadratic._best([math.nan, 3.0], "SGD")["is_end"]
    with pytest.raises(RecipeError, match="num_rates: expected a rate at which SGD does"):
        quadratic._best([math.inf, math.nan], "SGD")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 1.0, 1.0], "SGD: stays: the losses agree to 0 of their size."),
        ([1.0, 2.0, 4.0], "SGD: rises with the (1,1)-norm at every step, 4 times in all."),
        ([1.0, 4.0, 2.0], "SGD: changes 4 times, but not always upwards; 3 times already by a rot"),
    ],
)
def test_the_sentences_say_what_came_out(values, text):
    found = [
        {
            "t": norm,
            "one_one_norm_per_param": norm,
            "best": {m.name: {"loss": value, "is_end": False} for m in quadratic.METHODS},
        }
        for norm, value in zip((0.1, 0.2, 0.3), values, strict=True)
    ]
    control = {"best": {method.name: {"loss": 3.0} for method in quadratic.METHODS}}
    assert any(sentence.startswith(text) for sentence in quadratic.sentences(found, control))
    found[1]["best"]["SGD"]["is_end"] = True
    ends = [sentence for sentence in quadratic.sentences(found, control) if " an end " in sentence]
    assert ends == ["SGD: no conclusion, the best rate is an end at t = 0.2."]


def test_table_record_and_figure(config, capsys):
    path = quadratic.main(config)
    output = " ".join(capsys.readouterr().out.split())
    assert "Final loss at the best learning rate" in output
    assert "Adam, beta1 = 0: rises with the (1,1)-norm at every step" in output
    record = json.loads(path.read_text())
    assert record["config"]["dim"] == 40
    assert record["versions"]["torch"] == torch.__version__
    assert [row["t"] for row in record["rows"]] == [0.0, 0.2, 1.0]
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_dataclass_is_the_command_line(tmp_path, capsys):
    def parse(*args):
        return parse_command_line({"quadratic": quadratic.Config}, args, "About.")[0]

    file = tmp_path / "choices.yaml"
    file.write_text("dim: 20\nangles: [0, 1]\n")
    expected = dataclasses.replace(quadratic.Config(), dim=30, angles=(0.0, 1.0))
    assert parse("--config", str(file), "--dim", "30") == expected
    for args in (["--num-large", "1000"], ["--beta2", "1"], ["--angles", "[]"], ["--dim", "0"]):
        with pytest.raises(SystemExit):
            parse(*args)
        assert ": expected " in capsys.readouterr().err
