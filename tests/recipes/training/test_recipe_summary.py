import io
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote

import pytest
from rich.console import Console
from support.recipes import RECIPES
from support.reports import block, make_report, trained_gpt2

import gpt2
from lightning_linf.report.shares import shares_sentence
from training import summary
from training.losses import LossHistory


def rows(along=1.25, error=0.5, step=99):
    smoothness = {
        "step": step, "one_one_norm_per_param": 2.0, "one_one_norm_relative_error": 0.1,
        "operator_norm_lower/coordinate": 1.25, "operator_norm_upper/coordinate": 1.5,
        "step_advantage/coordinate": along, "step_advantage_relative_error/coordinate": error,
        "lambda_max": 8.0, "lambda_max_relative_error": 0.01,
    }  # fmt: skip
    return [smoothness], [{"step": 49, "density": 9.0}, {"step": 89, "density": 0.5}]


def test_what_is_known_comes_first_and_then_the_sentences_of_the_report():
    measured, found = rows()[0], trained_gpt2()
    first, *others = summary.geometry_sentences(measured, found)
    assert first == f"At step 100: {summary.smoothness_sentence(found)}"
    assert others == [found.verdict, shares_sentence(found)]
    (resumed,) = summary.geometry_sentences(measured, None)
    assert "step 100, before this training was resumed" in resumed
    (none,) = summary.geometry_sentences([], None)
    assert "was not measured" in none


def test_shares_are_left_out_where_they_are_the_verdict_upside_down():
    found = trained_gpt2()
    ends = ("coordinate", "global")
    kept = {
        name: {key: value for key, value in getattr(found, name).items() if key in ends}
        for name in ("smoothness", "dual_norm", "curvature")
    }
    both = replace(found, **kept)
    assert list(summary.geometry_sentences(rows()[0], both))[1:] == [both.verdict]


def test_the_smoothness_is_compared_from_end_to_end():
    blocks = {"coordinate": block(1000, 1.0, 2.0), "global": block(1, 8.0, 10.0)}
    norms = dict.fromkeys(blocks, 1.0)
    report = make_report(
        blocks, norms, num_params=1000, curvature=norms, lambda_max=8e-3,
        lambda_max_relative_error=0.25, settings={"num_samples": 1600},
    )  # fmt: skip
    sentence = summary.smoothness_sentence(report)
    assert sentence.startswith("On the 1,600 samples measured, the loss is 4 to 10 times as smooth")
    assert "a step can meet, is 0.001 to 0.002 along the one and 0.008 to 0.01 along" in sentence
    assert "On the batches measured" in summary.smoothness_sentence(replace(report, settings={}))
    flat = {name: block(each.num_blocks, 0.0, 0.0) for name, each in blocks.items()}
    no_curvature = replace(report, smoothness=flat, lambda_max=0.0)
    assert "has no curvature" in summary.smoothness_sentence(no_curvature)


@pytest.mark.parametrize(
    ("choices", "start"),
    [
        ({}, "Trained with adamw. The geometry is measured in the coordinates of the parameters."),
        ({"optimizer": "blockwise_adam"}, "Trained with blockwise_adam (blocks: tensor). The"),
        (
            {"optimizer": "blockwise_adam", "partition": "row", "rotation": "global"},
            "Trained with blockwise_adam (blocks: row) in rotated coordinates (global). The",
        ),
        (
            {"rotation": "row", "rotation_strength": 0.25, "swap_at": 7},
            "Trained with adamw for 7 steps, then adamw in rotated coordinates (row, 0.25). The",
        ),
    ],
)
def test_the_report_says_what_trained(choices, start):
    assert summary.optimizer_sentence(gpt2.Config(**choices)).startswith(start)


def test_the_table_has_the_latest_values_of_the_past_and_fits_80_columns():
    losses = LossHistory(1)
    losses.train = {99_999: 10.5, 100_000: 9.0}
    losses.validation = {49: 10.25, 149_999: 9.0}
    measured, heterogeneity = rows(0.0123, 1.2345, step=99_999)
    measured[0] |= {
        "operator_norm_lower/coordinate": 0.0012345, "operator_norm_upper/coordinate": 0.0023456,
        "one_one_norm_per_param": 0.0045678, "lambda_max": 0.012345,
    }  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary.geometry_table(measured, heterogeneity, losses))
    row = next(line for line in console.export_text().splitlines() if "100000" in line)
    assert " ".join(row.split()) == (
        "100000 10.500 10.250 0.0046 ±10% 0.0012-0.0023 0.0123-0.0125 0.500 0.012 ±123%"
    )
    del measured[0]["step_advantage_relative_error/coordinate"]  # of one batch
    console.print(summary.geometry_table(measured, heterogeneity, losses))
    assert "0.500 0.012 ±?" in " ".join(console.export_text().split())


CLASSES = ("gpt2.GPT2", "data.token_data.TokenData")


def test_the_command_for_the_full_report_starts_from_the_present_folder(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "lightning-linf"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.chdir(RECIPES.parent)
    rest = (
        "measure \\\n    'a b/last.ckpt' \\\n"
        "    --model gpt2.GPT2 --data data.token_data.TokenData --num_batches 4"
    )
    command = summary.measure_command(Path("a b", "last.ckpt"), *CLASSES, 4)
    assert command == f"  PYTHONPATH=recipes {quote(str(program))} {rest}"
    monkeypatch.chdir(tmp_path)
    command = summary.measure_command(Path("a b", "last.ckpt"), *CLASSES, 4)
    assert command == f"  PYTHONPATH={RECIPES} bin/lightning-linf {rest}"


def test_the_tensorboard_command_fits_the_environment(tmp_path, monkeypatch):
    program = tmp_path / ".venv" / "bin" / "tensorboard"
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.chdir(tmp_path)
    assert summary.tensorboard_command("runs").startswith("  pip install")
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert summary.tensorboard_command("runs") == "  .venv/bin/tensorboard --logdir runs"
    monkeypatch.setenv("PATH", str(program.parent))
    assert summary.tensorboard_command("runs") == "  tensorboard --logdir runs"
