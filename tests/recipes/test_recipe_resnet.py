import dataclasses
import json
import math
import os
from pathlib import Path
from shlex import quote

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch
from lightning.pytorch import Callback
from support.ranks import assert_close, environment, in_two_processes, weights

import resnet
from comparison import compare, variants
from data import image_data
from settings import RecipeError
from training.losses import LossRecorder


@pytest.fixture
def config(tmp_path):
    return resnet.Config(
        name="test",
        width=2,
        batch_size=4,
        micro_batch=2,
        max_steps=2,
        warmup_steps=1,
        val_every=2,
        val_images=6,
        log_every=1,
        checkpoint_every=1,
        heterogeneity_every=1,
        smoothness_every=2,
        num_probes=4,
        probe_images=2,
        accelerator="cpu",
        runs_dir=str(tmp_path / "runs"),
    )


def test_the_network_is_resnet18():
    with torch.device("meta"):
        full, thin = resnet.resnet18(3, 64), resnet.resnet18(1, 8)
        assert full(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in full.parameters()) == 11_173_962  # as published for CIFAR-10
    convolutions = [m for m in full.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == 18  # and the linear map
    assert [m.stride for m in convolutions].count((2, 2)) == 6  # three stages, and their shortcuts
    assert sum(p.numel() for p in thin.parameters()) == 176_258


def test_two_steps_run_and_everything_is_reported(config, capsys):
    trainer = resnet.main(config)
    output = " ".join(capsys.readouterr().out.replace("\\\n", "").split())
    assert trainer.global_step == 2
    assert "ResNet-18 of width 2 with " in output
    assert "Geometry of the loss" in output
    assert 0 <= float(trainer.callback_metrics["val_accuracy"]) <= 1
    path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
    command = f"measure {quote(str(path))} --model resnet.ResNet --data data.image_data.ImageData"
    assert command in output
    module = resnet.ResNet.load_from_checkpoint(path)
    assert module.config == config
    torch.testing.assert_close(module.state_dict(), trainer.lightning_module.state_dict())
    data = image_data.ImageData.load_from_checkpoint(path)
    assert vars(data.hparams) == vars(trainer.datamodule.hparams)


def test_a_resumed_run_equals_one_in_one_go(config, monkeypatch):
    config = dataclasses.replace(config, max_steps=4, smoothness_every=4)
    whole = resnet.main(config)

    class Interruption(Exception):
        pass

    def interrupt(self, batch, batch_idx):
        if self.global_step == 3:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(resnet.ResNet, "on_train_batch_start", interrupt)
        with pytest.raises(Interruption):
            resnet.main(dataclasses.replace(config, name="stopped"))
    resumed = resnet.main(dataclasses.replace(config, name="stopped", resume="last"))
    torch.testing.assert_close(
        resumed.lightning_module.state_dict(), whole.lightning_module.state_dict(), rtol=0, atol=0
    )
    with pytest.raises(RecipeError, match="width: expected 2 as in the run of"):
        resnet.main(dataclasses.replace(config, name="stopped", resume="last", width=4))


@pytest.mark.slow
def test_a_comparison_by_batch_size_measures_the_geometry_of_other_seeds(config, capsys):
    config = dataclasses.replace(config, weight_decay=0.0, max_steps=3)
    chosen = [dataclasses.replace(v, factors=(1.0,)) for v in (variants.ADASGD, variants.SGD)]
    results = compare.main(
        config, resnet.prepare, chosen, compare.Options(seeds=1, batch_sizes=(2, 4))
    )
    assert [result.config.batch_size for result in results] == [2, 4]
    assert "Batches of 2\n" in capsys.readouterr().out
    for size in (2, 4):
        folder = Path(config.runs_dir, f"test-batch{size}")
        record = json.loads((folder / "comparison.json").read_text())
        assert not (folder / "comparison.png").exists()  # of one rate each nothing is concluded
        assert record["config"]["batch_size"] == size
        for variant in record["variants"]:
            (outcome,) = variant["seeds"]
            (row,) = outcome["geometry"]
            assert (outcome["seed"], row["step"], set(row["smoothness"])) == (
                1, 3, {"coordinate", "global"},
            )  # fmt: skip


def test_sgd_does_not_notice_a_rotation_until_rounding_has_grown(config):
    config = dataclasses.replace(config, batch_size=16, micro_batch=16, lr=0.1, max_steps=5)
    losses = []
    for changes in ({}, {"rotation": "global"}, {"seed": 1}):
        recorder = LossRecorder()
        chosen = dataclasses.replace(config, optimizer="sgd", **changes)
        trainer, module, data = resnet.prepare(
            chosen, [recorder], logger=False, enable_checkpointing=False,
            enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, data)
        losses.append(torch.stack(recorder.losses))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)
    assert (losses[2] - losses[0]).abs().max() > 0.05


def test_wrong_choices_are_refused(config):
    with pytest.raises(RecipeError, match="strategy: expected one that keeps the network"):
        dataclasses.replace(config, strategy="fsdp2")
    with pytest.raises(RecipeError, match="width: expected at least 1, got 0"):
        dataclasses.replace(config, width=0)
    with pytest.raises(RecipeError, match="batch_size: expected a multiple of 2"):
        dataclasses.replace(config, batch_size=3)


def test_commands_and_presets(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compare, "main", lambda *choices: calls.append(choices))
    monkeypatch.setattr(resnet, "main", calls.append)
    resnet.run(["compare", "--batch-sizes", "[16,64]", "--max-steps=9", "--warmup-steps=3"])
    ((config, prepare, chosen, options, measured),) = calls
    assert (config.name, config.batch_size, config.weight_decay) == (
        "resnet-digits-compare",
        64,
        0.0,
    )
    assert (prepare, chosen) == (resnet.prepare, list(variants.FEW))
    assert set(measured) == {v for v in variants.ALL if v.partition != "head"}
    assert options == compare.Options(batch_sizes=(16, 64))
    resnet.run(["compare", "--variants", "all"])
    assert set(calls.pop()[2]) == {v for v in variants.ALL if v.partition != "head"}
    resnet.run(["--preset", "cifar10", "--data", "cifar10:there"])
    assert calls[1] == dataclasses.replace(resnet.PRESETS["cifar10"](), data="cifar10:there")
    with pytest.raises(SystemExit):
        resnet.run(["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(resnet.Config):
        assert f"--{field.name} " in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's own
def test_two_processes_train_together(config, tmp_path):
    class Losses(Callback):
        def on_train_end(self, trainer, pl_module):
            self.validation = float(trainer.callback_metrics["val_loss"])

    def on_rank(rank):
        os.environ.update(environment(rank))
        losses = Losses()
        trainer, module, data = resnet.prepare(
            dataclasses.replace(config, devices=2, strategy="ddp"), [losses], logger=False,
            enable_checkpointing=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, data)
        return weights(module), losses.validation

    (first, loss), (second, other_loss) = in_two_processes(on_rank, tmp_path)
    assert_close(first, second, rtol=0, atol=0)
    assert loss == other_loss
    assert math.isfinite(loss)
