import dataclasses
import os
from pathlib import Path
from shlex import quote

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch
from support.ranks import assert_close, environment, in_two_processes, weights

import vit
from comparison import compare, variants
from settings import RecipeError


@pytest.fixture
def config(tmp_path):
    return vit.Config(
        name="test",
        patch=4,
        n_layer=1,
        n_head=2,
        width=4,
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


def quietly(config):
    trainer, module, data = vit.prepare(
        config, [], logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    return module


def test_a_block_is_that_of_torch():
    block = vit.Block(8, 2)
    reference = torch.nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {"attention": "self_attn", "up": "linear1", "down": "linear2"}
    state = {
        ".".join(names.get(part, part) for part in name.split(".")): value
        for name, value in block.state_dict().items()
    }
    reference.load_state_dict(state)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(block(x), reference(x))


def test_patches_are_squares_of_the_image_in_reading_order(config):
    network = vit.VisionTransformer(1, 8, config)
    pixels = torch.randn(2, 1, 8, 8)
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    expected = [
        pixels[:, 0, y : y + 4, x : x + 4].flatten(1) @ network.embed.weight.flatten(1).T
        + network.embed.bias
        for y, x in corners
    ]
    patches = network.embed(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, torch.stack(expected, dim=1))
    assert network(pixels).shape == (2, 10)
    assert network.positions.shape == (4, 4)


def test_two_steps_run_and_everything_is_reported(config, capsys):
    trainer = vit.main(config)
    output = " ".join(capsys.readouterr().out.replace("\\\n", "").split())
    assert trainer.global_step == 2
    assert "ViT of 1 blocks of width 4 with " in output
    assert "Geometry of the loss" in output
    path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
    assert f"measure {quote(str(path))} --model vit.ViT --data data.image_data.ImageData" in output
    module = vit.ViT.load_from_checkpoint(path)
    assert module.config == config
    torch.testing.assert_close(module.state_dict(), trainer.lightning_module.state_dict())


def test_a_resumed_run_equals_one_in_one_go(config, monkeypatch):
    config = dataclasses.replace(config, max_steps=4, smoothness_every=4)
    whole = vit.main(config)

    class Interruption(Exception):
        pass

    def interrupt(self, batch, batch_idx):
        if self.global_step == 3:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(vit.ViT, "on_train_batch_start", interrupt)
        with pytest.raises(Interruption):
            vit.main(dataclasses.replace(config, name="stopped"))
    resumed = vit.main(dataclasses.replace(config, name="stopped", resume="last"))
    torch.testing.assert_close(
        resumed.lightning_module.state_dict(), whole.lightning_module.state_dict(), rtol=0, atol=0
    )


def test_wrong_choices_are_refused(config):
    with pytest.raises(RecipeError, match="width: expected a multiple of n_head=2, got 5"):
        dataclasses.replace(config, width=5)
    with pytest.raises(RecipeError, match="patch: expected a divisor of the 8 pixels of a side"):
        vit.ViT(dataclasses.replace(config, patch=3))
    with pytest.raises(RecipeError, match="strategy: expected one that keeps the network"):
        dataclasses.replace(config, strategy="fsdp2")


def test_commands_and_presets(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compare, "main", lambda *choices: calls.append(choices))
    monkeypatch.setattr(vit, "main", calls.append)
    vit.run([])
    assert calls.pop() == vit.Config() == vit.PRESETS["digits"]()
    vit.run(["compare", "--variants", "all"])
    assert set(calls.pop()[2]) == set(variants.ALL)  # it has heads
    with pytest.raises(SystemExit):
        vit.run(["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(vit.Config):
        assert f"--{field.name} " in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's own
def test_two_processes_train_as_one_does(config, tmp_path):
    # Not Adam: no loss depends on the keys' biases, whose gradient is rounding that it enlarges.
    config = dataclasses.replace(config, optimizer="sgd", lr=0.1)

    def on_rank(rank):
        os.environ.update(environment(rank))
        return weights(quietly(dataclasses.replace(config, devices=2, strategy="ddp")))

    first, second = in_two_processes(on_rank, tmp_path)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(first, weights(quietly(config)), rtol=1e-4, atol=1e-6)
