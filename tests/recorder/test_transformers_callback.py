"""The callback for transformers' Trainer leaves the training as it was."""

import warnings

import pytest
import torch
from support.records import read

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
