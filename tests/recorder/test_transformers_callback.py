"""The callback for transformers' Trainer: training stays as it was, and its losses are shown."""

import warnings

import pytest
import torch
from support.records import read

from lightning_linf.runs.load import load

pytestmark = pytest.mark.slow


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


def test_a_training_after_one_that_an_error_has_ended_closes_its_files(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    transformers = pytest.importorskip("transformers")
    from lightning_linf.recorder.transformers import GeometryCallback

    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model, callback = torch.nn.Linear(2, 1), GeometryCallback(logdir=tmp_path / "run")
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    callback.on_train_begin(arguments, state, control, model=model)
    model(torch.ones(1, 2)).sum().backward()
    callback.recorder.observe(model, step=0)
    first = callback.recorder._folder
    assert first._writer is not None
    callback.on_train_begin(arguments, state, control, model=model)
    assert first._writer is None
    assert len(model._forward_hooks) == 1
