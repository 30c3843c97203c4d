import dataclasses
import gzip
import importlib
import json
import math
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from support.ranks import assert_close, environment, in_two_processes, weights

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
if not (RECIPES / "resnet.py").is_file():
    pytest.skip("recipes/ is not beside tests/: they are not in the wheel", allow_module_level=True)
for library in ("jsonargparse", "tensorboard", "matplotlib", "sklearn"):
    pytest.importorskip(library, reason=f"the recipes need {library}: lightning-linf[recipes]")
if str(RECIPES) not in sys.path:
    sys.path.insert(0, str(RECIPES))  # as for `python recipes/resnet.py`

compare = importlib.import_module("compare")
image_data = importlib.import_module("image_data")
images = importlib.import_module("images")
resnet = importlib.import_module("resnet")
settings = importlib.import_module("settings")
variants = importlib.import_module("variants")
LossRecorder = importlib.import_module("report").LossRecorder


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


def write_cifar10(folder, num_images=3):
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = draw.integers(256, size=(num_images, 3072), dtype=np.uint8)
        labels = draw.integers(10, size=num_images).tolist()
        content = {b"data": pixels, b"labels": labels, b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_idx(path, values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder, suffix=""):
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for prefix, number in (("train", 6), ("t10k", 3)):
        pixels, labels = draw.integers(256, size=(number, 28, 28)), draw.integers(10, size=number)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return folder


def test_cifar10_batches_are_read_in_order_and_shape(tmp_path):
    folder = write_cifar10(tmp_path / "cifar")
    (train, labels), (held_out, _) = images.load(f"cifar10:{folder}")
    assert (train.shape, held_out.shape) == ((15, 3, 32, 32), (3, 3, 32, 32))
    second = pickle.loads((folder / "data_batch_2").read_bytes())
    assert labels[3:6].tolist() == second[b"labels"]
    # a row holds all red, then all green, then all blue pixels, row by row
    assert train[3, 1, 2, 5] == second[b"data"][0, 1024 + 2 * 32 + 5]


def test_cifar10_as_python_2_wrote_it_is_read(tmp_path):
    folder = write_cifar10(tmp_path / "cifar")
    # numpy's arrays under protocol 2 of old name their module otherwise
    content = (folder / "test_batch").read_bytes()
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    (folder / "test_batch").write_bytes(old)
    images.load(f"cifar10:{folder}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_packed_and_plain(tmp_path, suffix):
    folder = write_fashion_mnist(tmp_path / "fashion", suffix)
    (train, labels), (held_out, _) = images.load(f"fashion-mnist:{folder}")
    draw = np.random.default_rng(0)
    assert (train[:, 0] == draw.integers(256, size=(6, 28, 28))).all()
    assert labels.tolist() == draw.integers(10, size=6).tolist()
    assert held_out.shape == (3, 1, 28, 28)


def test_the_digits_are_there_and_every_fifth_is_held_out():
    (train, labels), (held_out, _) = images.load("digits")
    assert (train.shape, held_out.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (train.max(), set(labels.tolist())) == (255, set(range(10)))


class Evil:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        (b"", "EOFError"),
        (b"GIF89a", "UnpicklingError"),
        (pickle.dumps({b"labels": [1]}), "KeyError"),
        (pickle.dumps([1]), "TypeError"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}), "float64 of shape"),
        (pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 2]}), "shape \\(2, 3"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}), "shape \\(1"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), "10 to 10"),
        (pickle.dumps({b"data": Evil(), b"labels": [1]}), "has no place in it"),
    ],
)
def test_malformed_cifar10_is_refused(tmp_path, content, message):
    folder = write_cifar10(tmp_path / "cifar")
    (folder / "data_batch_3").unlink()
    if content is not None:
        (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(
        settings.RecipeError, match=f"data: expected .*data_batch_3', got .*{message}"
    ):
        images.load(f"cifar10:{folder}")


def idx(*header, content=bytes(6 * 28 * 28)):
    return struct.pack(f">HBB{len(header) - 3}I", *header) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        (b"", "error: unpack_from"),
        (idx(1, 8, 3, 6, 28, 28), "header \\(1, 8, 3"),
        (idx(0, 13, 3, 6, 28, 28), "header \\(0, 13, 3"),
        (idx(0, 8, 3, 7, 28, 28), "and 4704 bytes"),
        (idx(0, 8, 3, 5, 28, 28, content=bytes(5 * 28 * 28)), "5\\. Fetch"),
    ],
)
def test_malformed_idx_is_refused(tmp_path, content, message):
    folder = write_fashion_mnist(tmp_path / "fashion")
    file = folder / "train-images-idx3-ubyte"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(settings.RecipeError, match=f"data: expected .*, got .*{message}"):
        images.load(f"fashion-mnist:{folder}")


def test_a_broken_gz_is_refused(tmp_path):
    folder = write_fashion_mnist(tmp_path / "fashion", ".gz")
    file = folder / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(settings.RecipeError, match=r"t10k-labels-idx1-ubyte', got EOFError"):
        images.load(f"fashion-mnist:{folder}")


@pytest.mark.parametrize("data", ["cifar10", "cifar10:nowhere", "mnist:.", "fashion-mnist:", ""])
def test_unknown_data_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(settings.RecipeError, match="data: expected digits, cifar10:DIR or fashion"):
        images.load(data)


def test_the_address_of_images_follows_their_content(tmp_path):
    folder = write_fashion_mnist(tmp_path / "fashion")
    before = images.content_id(f"fashion-mnist:{folder}")
    packed = write_fashion_mnist(tmp_path / "packed", ".gz")
    assert images.content_id(f"fashion-mnist:{packed}") == before
    write_idx(folder / "t10k-labels-idx1-ubyte", np.array([1, 2, 3]))
    assert images.content_id(f"fashion-mnist:{folder}") != before


def test_the_network_is_resnet18():
    with torch.device("meta"):
        full, thin = resnet.resnet18(3, 64), resnet.resnet18(1, 8)
        assert full(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in full.parameters()) == 11_173_962  # as published for CIFAR-10
    convolutions = [m for m in full.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == 18  # and the linear map
    assert [m.stride for m in convolutions].count((2, 2)) == 6  # three stages, and their shortcuts
    assert sum(p.numel() for p in thin.parameters()) == 176_258


def batches(config, *, rank=0, num_ranks=1, step=0, micro_batch=None):
    _, _, data = resnet.prepare(config, [], logger=False)
    data.micro_batch = micro_batch or config.micro_batch
    data.trainer = types.SimpleNamespace(
        global_step=step, global_rank=rank, world_size=num_ranks, **{"lightning_module": None}
    )
    data.setup("fit")
    return list(data.train_dataloader()), list(data.val_dataloader()), data


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(config, tmp_path):
    folder = write_fashion_mnist(tmp_path / "fashion")
    config = dataclasses.replace(
        config, data=f"fashion-mnist:{folder}", batch_size=6, micro_batch=6, max_steps=4
    )
    run, held_out, data = batches(config)
    key = [tuple(batch[0][:, 0, 3, 4].tolist()) for batch in run]
    assert {tuple(sorted(k)) for k in key} == {tuple(sorted(key[0]))}
    assert len(set(key)) > 1
    later, _, _ = batches(config, step=2)
    torch.testing.assert_close(later[:2], run[2:])
    assert len(held_out[0][0]) == 3
    pixels = data.train_set[0]
    assert float(pixels.mean().abs()) < 1e-6
    assert float(pixels.std(correction=0)) == pytest.approx(1)


def test_ranks_share_out_the_images_of_a_step(config):
    config = dataclasses.replace(config, batch_size=4, micro_batch=4)
    run, held_out, _ = batches(config)
    ranks = [batches(config, rank=rank, num_ranks=2, micro_batch=2) for rank in range(2)]
    for step, (pixels, _) in enumerate(run):
        shared = torch.cat([rank[0][step][0] for rank in ranks])
        assert sorted(shared.flatten(1).tolist()) == sorted(pixels.flatten(1).tolist())
    assert sum(len(labels) for rank in ranks for _, labels in rank[1]) == len(held_out[0][1]) + 2


def test_two_steps_run_and_everything_is_reported(config, capsys):
    trainer = resnet.main(config)
    output = " ".join(capsys.readouterr().out.split())
    assert trainer.global_step == 2
    assert "ResNet-18 of width 2 with " in output
    assert "Geometry of the loss" in output
    assert 0 <= float(trainer.callback_metrics["val_accuracy"]) <= 1
    path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
    assert f"measure {path} --model resnet.ResNet --data image_data.ImageData" in output
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
    with pytest.raises(settings.RecipeError, match="width: expected 2 as in the run of"):
        resnet.main(dataclasses.replace(config, name="stopped", resume="last", width=4))


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
        assert (folder / "comparison.png").read_bytes()[:4] == b"\x89PNG"
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
    with pytest.raises(settings.RecipeError, match="strategy: expected one that keeps the network"):
        dataclasses.replace(config, strategy="fsdp2")
    with pytest.raises(settings.RecipeError, match="width: expected at least 1, got 0"):
        dataclasses.replace(config, width=0)
    with pytest.raises(settings.RecipeError, match="batch_size: expected a multiple of 2"):
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
    assert calls[1] == dataclasses.replace(resnet.cifar10(), data="cifar10:there")
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
