"""The examples of docs/without_a_trainer.md run as they stand, and a report shows them."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from support.records import read

from lightning_linf.html.page import make_page
from lightning_linf.report import GeometryReport
from lightning_linf.runs.load import load

PAGE = Path(__file__).parents[2] / "docs" / "without_a_trainer.md"
NEEDS = {"plain": "torch", "fabric": "lightning", "accelerate": "accelerate"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGE.is_file(), reason="tests the source tree"),
    pytest.mark.filterwarnings("ignore:.*torch.backends.cuda.matmul.allow_tf32:UserWarning"),
]


def examples():
    """Give the code of each example by the folder that it writes."""
    if not PAGE.is_file():
        return {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return {re.search(r'"runs/(\w+)"', block)[1]: block for block in blocks}


@pytest.mark.parametrize("name", ["plain", "fabric", "accelerate"])
def test_loop_of_the_documentation_trains_measures_and_is_shown(name, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[name], name, "exec"), {})
    records, notes = read(tmp_path / "runs" / name / "geometry.jsonl")
    assert notes == []
    observed = [one.step for one in records if "heterogeneity" in one.tag]
    measured = [one for one in records if "smoothness" in one.tag]
    assert observed == list(range(20))
    assert [one.step for one in measured] == [9, 19]
    report = GeometryReport.from_dict({**measured[-1].report})
    assert report.num_params == 161
    assert report.settings["stage"] == "training"
    # Without the names of wrappers.
    assert measured[-1].tensors == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert measured[-1].scalars["geometry/probe_overhead"] > 0
    (run,) = load([tmp_path])
    assert run.report.verdict in make_page([run])


def test_training_of_transformers_is_recorded_by_the_callback(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and accelerate
        exec(compile(examples()["transformers"], "transformers", "exec"), {})
    records, notes = read(tmp_path / "runs" / "transformers" / "geometry" / "geometry.jsonl")
    assert notes == []
    assert [one.step for one in records if "heterogeneity" in one.tag] == list(range(20))
    measured = [one for one in records if "smoothness" in one.tag]
    assert [one.step for one in measured] == [9, 19]
    assert measured[0].report["settings"]["num_batches"] == 4
    assert measured[0].report["noise"] is not None
    (run,) = load([tmp_path])
    assert run.report is not None


def test_training_of_transformers_with_the_callback_is_bit_identical(tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from lightning_linf.recorder.transformers import GeometryCallback

    def trained(*callbacks):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=32,
            n_positions=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )  # with dropout
        data = [{"input_ids": text, "labels": text} for text in torch.randint(32, (64, 8))]
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"),
            max_steps=6,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        model = transformers.GPT2LMHeadModel(config)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, callbacks=list(callbacks)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers and accelerate
            trainer.train()
        assert not model._forward_hooks
        return model.state_dict()

    geometry = GeometryCallback(3, 2, logdir=tmp_path / "run", on_error="raise", num_probes=4)
    plain, measured = trained(), trained(geometry)
    for name, value in plain.items():
        assert torch.equal(value, measured[name]), name
    records = read(tmp_path / "run" / "geometry.jsonl")[0]
    assert [one.step for one in records if "smoothness" in one.tag] == [2, 5]
    assert [one.step for one in records if "heterogeneity" in one.tag] == [1, 3, 5]
    assert geometry.last_report.settings["num_batches"] == 2
    optimizer = geometry.last_report.settings["optimizer"]
    assert optimizer == "AdamW(lr=0, betas=(0.9, 0.999), first of 2 groups)"  # its schedule's end


def test_losses_of_transformers_stand_beside_the_geometry_of_their_steps(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    transformers = pytest.importorskip("transformers")
    from support.geometry_tab import Plugin

    from lightning_linf.recorder.transformers import GeometryCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "run"))
    data = [{"x": x, "labels": x.sum(0, keepdim=True)} for x in torch.randn(48, 3)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=6,
        logging_steps=1,
        use_cpu=True,
        report_to="tensorboard",
        save_strategy="no",
        disable_tqdm=True,
    )
    geometry = GeometryCallback(3, 2, on_error="raise", num_probes=4)
    trainer = transformers.Trainer(
        Regression(), arguments, train_dataset=data, callbacks=[geometry]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and accelerate
        trainer.train()
    (run,) = load([tmp_path])
    assert [step for step, _ in run.own["train/loss"]] == list(range(6))
    curves = Plugin(tmp_path).request("/scalars", run="run")[1]["curves"]
    assert curves["train/loss"]["steps"] == [1, 2, 3, 4, 5, 6]
    assert curves["geometry/density"]["steps"] == [2, 4, 6]
    assert curves["geometry/lambda_max"]["steps"] == [3, 6]


class Regression(torch.nn.Module):
    """A model as transformers' Trainer takes it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x, labels):
        return {"loss": (self.layer(x) - labels).square().mean()}
