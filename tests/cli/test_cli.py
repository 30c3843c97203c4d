import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import torch

pytest.importorskip("jsonargparse", reason="the command needs jsonargparse: lightning-linf[cli]")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from lightning_linf import GeometryReport, measure_geometry, probe
from lightning_linf.cli import main, measure
from lightning_linf.partition_names import FusedQKV, PartitionName
from lightning_linf.probe import ProbeError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*LightningCLI's args parameter",
    "ignore:.*have no `val_dataloader`",
    "ignore:(?s).*(JsonargparseDeprecation|was deprecated in v4)",  # in LightningCLI
)
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def loader(seed, num_batches):
    torch.manual_seed(seed)
    size = 6 * num_batches
    return DataLoader(TensorDataset(torch.randn(size, 3), torch.randint(2, (size,))), 6)


class Plain(LightningModule):  # remembers no arguments
    def __init__(self, width: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 2)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.scale * nn.functional.cross_entropy(self.layers(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Net(Plain):
    def __init__(self, width: int, scale: float = 1.0):
        super().__init__(width, scale)
        self.save_hyperparameters()


class WithData(Net):
    def train_dataloader(self):
        assert self.trainer.lightning_module is self
        return loader(3, 2)


class Resetting(Net):
    def setup(self, stage):
        nn.init.zeros_(self.layers[0].weight)


class Manual(Net):
    automatic_optimization = False


class Interrupted(Net):
    def training_step(self, batch, batch_idx):
        raise KeyboardInterrupt


class Unrestricted(Net):
    sources = []

    @classmethod
    def load_from_checkpoint(cls, source, map_location):  # as in lightning 2.5
        cls.sources.append(type(source).__name__)
        content = torch.load(source, weights_only=False)
        module = cls(**content["hyper_parameters"])
        module.load_state_dict(content["state_dict"])
        return module


class Wrong(Net):
    def training_step(self, batch, batch_idx):
        raise ValueError("a mistake of the user")


class Data(LightningDataModule):
    def __init__(self, num_batches: int = 8, seed: int = 1):
        super().__init__()
        self.save_hyperparameters()
        self.factor = None

    def prepare_data(self):
        assert self.trainer.num_devices == 1

    def setup(self, stage):
        assert stage == "fit"
        self.factor = 2.0

    def train_dataloader(self):
        return loader(self.hparams.seed, self.hparams.num_batches)

    def val_dataloader(self):
        return loader(5, 2)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return self.factor * x, y

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (x + 1.0, y) if self.trainer.training else (x - 1.0, y)


class Other:
    pass
"""
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "max_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's project, with a checkpoint in `net.ckpt`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "users_net.py").write_text(PROJECT)
    (folder / "users_broken.py").write_text("import a_package_that_is_not_there\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        project = importlib.import_module("users_net")
    for name, data in (("Net", "Data"), ("Plain", "Data"), ("WithData", None)):
        torch.manual_seed(0)
        trainer = Trainer(default_root_dir=folder, enable_checkpointing=False, **QUIET)
        # Other numbers than the defaults, so that they must come from the checkpoint.
        datamodule = getattr(project, data)(num_batches=9, seed=2) if data else None
        trainer.fit(getattr(project, name)(width=5, scale=0.5), datamodule=datamodule)
        trainer.save_checkpoint(folder / f"{name.lower()}.ckpt")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # main puts the folder first


@pytest.fixture
def project(folder):
    return sys.modules["users_net"]


CLASSES = ["--model", "users_net.Net", "--data", "users_net.Data"]
CHEAP = ["--num_probes", "4", "--partitions", "tensor", "--device", "cpu"]
USUAL = ["net.ckpt", *CLASSES, *CHEAP]


def run(capsys, *args):
    """Run `measure` and return its report, what it printed, and its errors."""
    path = Path("run.json")
    path.unlink(missing_ok=True)
    status = main(["measure", *args, "--output", str(path)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return GeometryReport.load(path), captured.out, captured.err


def refusal(capsys, *args):
    assert main(["measure", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def users_batches(project, split="train", count=8):
    """Compute by hand what the loaders and hooks of Data give."""
    loader = project.loader(*((2, 9) if split == "train" else (5, 2)))
    shift = 1.0 if split == "train" else -1.0
    return [(2.0 * x + shift, y) for (x, y), _ in zip(loader, range(count), strict=False)]


def numbers(report):
    return dataclasses.replace(report, settings={}, seconds=0.0).to_dict()  # "NaN" == "NaN"


@pytest.mark.parametrize(
    ("flags", "split", "num_batches", "num_noise_batches", "options"),
    [
        ([], "train", 1, 8, {}),
        (["--num_batches=3", "--num_noise_batches=5", "--seed=4"], "train", 3, 5, {"seed": 4}),
        (["--num_noise_batches", "0", "--mode=train"], "train", 1, 0, {"mode": "train"}),
        (["--split=val", "--num_noise_batches=2", "--num_batches=2"], "val", 2, 2, {}),
        (["--num_noise_batches=0", "--max_hvps=45"], "train", 1, 0, {"max_hvps": 45}),
        (["--num_noise_batches=0", "--partitions", "row", "module"], "train", 1, 0,
         {"partitions": ["row", "module"]}),
        (["--num_noise_batches=0", "--partitions", "row", "--output_dims", '{"layers.0": 1}'],
         "train", 1, 0, {"partitions": ["row"], "output_dims": {"layers.0": 1}}),
    ],
)  # fmt: skip
def test_report_is_that_of_measure_geometry_on_the_same_batches(
    project, capsys, flags, split, num_batches, num_noise_batches, options
):
    report, _, _ = run(capsys, *USUAL, *flags)
    module = project.Net.load_from_checkpoint("net.ckpt")
    assert module.hparams == {"width": 5, "scale": 0.5}
    batches = users_batches(project, split)
    expected = measure_geometry(
        module,
        batches[:num_batches],
        noise_batches=batches[:num_noise_batches] or None,
        **{"num_probes": 4, "partitions": ["tensor"]} | options,
    )
    assert numbers(report) == numbers(expected)
    assert report.settings == expected.settings | {
        "checkpoint": "net.ckpt", "global_step": 3, "split": split,
    }  # fmt: skip


def test_partitions_and_their_arguments_are_passed_on(capsys, monkeypatch):
    seen = []

    def stop(*args, **options):
        seen.append([options[name] for name in ("partitions", "output_dims", "fused_qkv")])
        raise ProbeError("stopped")

    monkeypatch.setattr(probe, "measure_geometry", stop)
    flags = ["--partitions", "head", "--fused_qkv", "head_qkv"]
    assert "stopped" in refusal(capsys, *USUAL, *flags)
    assert "stopped" in refusal(capsys, "net.ckpt", *CLASSES)
    assert seen == [[["head"], None, "head_qkv"], [None, None, None]]


def test_what_is_printed_is_the_report_and_where_it_was_saved(capsys):
    report, out, err = run(capsys, *USUAL)
    assert [line.rstrip() for line in out.splitlines()] == [
        *str(report).splitlines(),
        "Report: run.json",
    ]
    assert err == ""


def test_keep_chooses_the_advice(capsys, monkeypatch):
    report, _, _ = run(capsys, *USUAL)
    dual_norm = report.dual_norm | {"coordinate": 2 * report.dual_norm["coordinate"]}
    adam = dataclasses.replace(report, dual_norm=dual_norm)  # favours it
    monkeypatch.setattr(measure, "_measure", lambda options, classes: adam)
    assert adam.recommend(0.01).partition == "global" != adam.recommend(0.9).partition
    for flags, keep, other in (([], 0.9, 0.01), (["--keep=0.01"], 0.01, 0.9)):
        words = " ".join(run(capsys, *USUAL, *flags)[1].split())
        assert adam.recommend(keep).sentence in words
        assert adam.recommend(other).sentence not in words


def test_a_terminal_shows_progress(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich see a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert "Hessian-vector products" in run(capsys, *USUAL)[2]


def test_a_given_argument_replaces_the_saved_one_and_the_others_stay(capsys, tmp_path):
    saved, _, _ = run(capsys, *USUAL)  # with scale 0.5
    file = tmp_path / "choices.yaml"
    file.write_text(
        "seed: 7\nnum_probes: 4\ntrainer: {max_steps: 3}\nmodel: {class_path: users_net.Net, "
        "init_args: {scale: 1.0}}\ndata: {class_path: users_net.Data, init_args: {seed: 3}}\n"
    )
    start = ["net.ckpt", "--device=cpu", "--partitions", "tensor"]
    other, _, _ = run(capsys, *start, "--config", str(file))
    assert other.settings["seed"] == 7
    assert other.loss != pytest.approx(2 * saved.loss)  # other data
    # Flags win, before the file and after it.
    flags = ["--data.seed", "2", f"--config={file}", "--seed=0", "--model.scale=2.0"]
    scaled, _, _ = run(capsys, *start, *flags)
    assert scaled.settings["seed"] == 0
    assert scaled.loss == pytest.approx(4 * saved.loss, rel=1e-6)  # float32


def test_without_data_the_module_is_asked(project, capsys):
    flags = ["withdata.ckpt", "--model", "users_net.WithData", *CHEAP, "--num_noise_batches=2"]
    report, _, _ = run(capsys, *flags)
    module = project.WithData.load_from_checkpoint("withdata.ckpt")
    batches = [tuple(batch) for batch in project.loader(3, 2)]
    expected = measure_geometry(
        module, batches[:1], noise_batches=batches, num_probes=4, partitions=["tensor"]
    )
    assert numbers(report) == numbers(expected)


def test_arguments_that_were_not_saved_can_be_given(capsys):
    flags = ["--model", "users_net.Plain", "--data", "users_net.Data", *CHEAP]
    message = refusal(capsys, "plain.ckpt", *flags)
    assert "got none in the checkpoint for width. Give them as --model.width VALUE" in message
    assert "self.save_hyperparameters() in Plain.__init__" in message
    plain, _, _ = run(capsys, "plain.ckpt", *flags, "--model.width=5", "--model.scale=0.5")
    net, _, _ = run(capsys, *USUAL)
    assert numbers(plain) == numbers(net)  # trained alike


def test_setup_does_not_touch_the_weights(capsys):
    flags = ["net.ckpt", "--model=users_net.Resetting", "--data=users_net.Data", *CHEAP]
    assert numbers(run(capsys, *flags)[0]) == numbers(run(capsys, *USUAL)[0])


@pytest.mark.parametrize("subclass_mode", [False, True])
def test_a_checkpoint_of_lightning_cli_is_measured(project, capsys, tmp_path, subclass_mode):
    if subclass_mode:
        arguments = {
            "model": {"class_path": "users_net.Net", "init_args": {"width": 5, "scale": 0.5}},
            "data": {"class_path": "users_net.Data", "init_args": {"num_batches": 9, "seed": 2}},
        }
    else:
        arguments = {
            "model": {"width": 5, "scale": 0.5},
            "data": {"num_batches": 9, "seed": 2},
        }
    arguments |= {"trainer": QUIET | {"enable_checkpointing": False}, "seed_everything": 0}
    cli = LightningCLI(
        LightningModule if subclass_mode else project.Net,
        None if subclass_mode else project.Data,
        run=False,
        args=arguments,
        save_config_callback=None,
        subclass_mode_model=subclass_mode,
        subclass_mode_data=subclass_mode,
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    path = tmp_path / "cli.ckpt"
    cli.trainer.save_checkpoint(path)
    assert "_instantiator" in torch.load(path, weights_only=True)["hyper_parameters"]

    report, _, _ = run(capsys, str(path), *CLASSES, *CHEAP)
    module = project.Net(width=5, scale=0.5)
    module.load_state_dict(cli.model.state_dict())
    batches = users_batches(project)
    options = {"num_probes": 4, "partitions": ["tensor"], "noise_batches": batches}
    assert numbers(report) == numbers(measure_geometry(module, batches[:1], **options))
    scaled, _, _ = run(capsys, str(path), *CLASSES, *CHEAP, "--model.scale", "1.0")
    assert scaled.loss == pytest.approx(2 * report.loss, rel=1e-6)  # float32
    assert "Net" in refusal(capsys, str(path), *CLASSES, *CHEAP, "--model.width", "x")


REFUSALS = {
    "no model": (["net.ckpt"], "arguments are required: model (see --help)"),
    "no checkpoint": (CLASSES, "arguments are required: checkpoint"),
    "checkpoint nowhere": (["nowhere.ckpt", *CLASSES], "got nothing at 'nowhere.ckpt'"),
    "checkpoint a folder": ([".", *CLASSES], "got a folder at '.'. Name a file in it"),
    "checkpoint is text": (["users_net.py", *CLASSES], "'users_net.py', which is something else"),
    "no weights": (["other.ckpt", *CLASSES], "'other.ckpt', which has no `state_dict`"),
    "objects": (["objects.ckpt", *CLASSES], "got users_net.Other in 'objects.ckpt'. Reading such"),
    "no dot": (["net.ckpt", "--model", "Net"], "--model to be the path of a LightningModule"),
    "no module": (["net.ckpt", "--model", "nowhere.Net"], "there is no module 'nowhere' in this"),
    "no submodule": (["net.ckpt", "--model", "users_net.sub.Net"], "no module 'users_net.sub'"),
    "no class": (["net.ckpt", "--model", "users_net.Nett"], "'users_net.Nett', which names no"),
    "not a module": (["net.ckpt", "--model", "users_net.Data"], "does not derive from lightning."),
    "not data": ([*USUAL, "--data", "users_net.Net"], "--data to be the path of a LightningData"),
    "unknown option": ([*USUAL, "--num_prob", "3"], "unrecognized arguments: --num_prob"),
    "unknown argument": ([*USUAL, "--model.depth", "3"], "--model Net: unrecognized arguments: "),
    "wrong type": ([*USUAL, "--data.seed", "x"], "--data Data: Parser key \"data.seed\""),
    "no value": ([*USUAL, "--model.width", "--seed=1"], "a value after --model.width, got none"),
    "last no value": ([*USUAL, "--model.width"], "expected a value after --model.width, got none"),
    "weights of another": ([*USUAL, "--model.width=6"], "net.ckpt' to fit Net, got: size mismatch"),
    "config nowhere": ([*USUAL, "--config", "no.yaml"], "--config to be a YAML file: [Errno 2]"),
    "config no YAML": ([*USUAL, "--config", "bad.yaml"], "--config to be a YAML file: while"),
    "config a list": ([*USUAL, "--config", "list.yaml"], "hold a mapping, got list in 'list.yaml'"),
    "config's model": ([*USUAL, "--config", "model.yaml"], "expected `model` in --config to be a"),
    "config's option": ([*USUAL, "--config", "option.yaml"], "Option 'num_prob' is not accepted"),
    "split": ([*USUAL, "--split", "test"], "split"),
    "partition": ([*USUAL, "--partitions", "rows"], "partitions"),
    "no heads": ([*USUAL, "--partitions", "head"], "expected attention with trainable parameters"),
    "fused_qkv": ([*USUAL, "--fused_qkv", "kqv"], "fused_qkv"),
    "output_dims": ([*USUAL, "--output_dims", "{weight: one}"], "output_dims"),
    "num_probes": ([*USUAL, "--num_probes", "3"], "expected `num_probes` >= 4, got 3"),
    "max_hvps": ([*USUAL, "--max_hvps", "5"], "expected `max_hvps` >= 41"),
    "num_batches": ([*USUAL, "--num_batches", "0"], "--num_batches at least 1, got 0"),
    "one for noise": ([*USUAL, "--num_noise_batches=1"], "--num_noise_batches 0 or at least 2"),
    "less for noise": ([*USUAL, "--num_noise_batches=-3"], "--num_noise_batches 0 or at least 2"),
    "keep": ([*USUAL, "--keep", "0"], "--keep in (0, 1]. 0.9 keeps 90 %, got 0.0"),
    "device": ([*USUAL, "--device", "gpu0"], "--device to be auto, cpu, cuda, cuda:1 (say) or mps"),
    "no such device": ([*USUAL, "--device", "cuda:99"], "--device cuda:99: "),
    "output a folder": ([*USUAL, "--output", "."], "--output to be a file, got the folder"),
    "output nowhere": ([*USUAL, "--output", "no/r.json"], "--output in a folder that exists, got"),
    "too few batches": ([*USUAL, "--num_batches=10"], "10 batches in Data.train_dataloader "
                        "(the larger of --num_batches and --num_noise_batches), got 9"),
    "few in val": ([*USUAL, "--split=val"], "expected 8 batches in Data.val_dataloader"),
    "no data": (["net.ckpt", "--model=users_net.Net", *CHEAP], "to have a train_dataloader, got "
                "none. Give a LightningDataModule as --data"),
    "not measurable": (["net.ckpt", "--model=users_net.Manual", "--data=users_net.Data", *CHEAP],
                       "expected automatic optimization, but Manual.training_step steps its"),
}  # fmt: skip


ODD = {  # what stands in place of a part of a checkpoint that is right, if it is a dict
    "a string as weights": ({"state_dict": "abc"}, "has a str for `state_dict` in place of a dict"),
    "numbered weights": ({"state_dict": {1: 2}}, "has a dict for `state_dict` in place of a dict"),
    "no tensors": ({"state_dict": {"layers.0.weight": "x"}}, "to fit Net, got: "),
    "a list of hyperparameters": ({"hyper_parameters": [1]}, "has a list for `hyper_parameters`"),
    "no hyperparameters": ({"hyper_parameters": None}, "has a NoneType for `hyper_parameters`"),
    "of the datamodule": ({"datamodule_hyper_parameters": "x"},
                          "has a str for `datamodule_hyper_parameters`"),
    "old hyperparameters": ({"hparams": [3]}, "has a list for `hparams`"),
    "a list as name": ({"hparams_name": ["x"]}, "has a list for `hparams_name`"),
    "a number as type": ({"hparams_type": 3}, "'int' object is not callable. Save it anew"),
    "no version": ({"pytorch-lightning_version": None}, "has no `pytorch-lightning_version`"),
    "a number as version": ({"pytorch-lightning_version": 3}, "has 3 as `pytorch-lightning_ver"),
    "no such version": ({"pytorch-lightning_version": "two"}, "has 'two' as `pytorch-lightning_v"),
    "what Lightning cannot migrate": ({"pytorch-lightning_version": "1.5.0", "loops": [1]},
                                      "expected Lightning to make Net out of 'odd.ckpt', got "),
    "code to run": ({"hyper_parameters": {"_instantiator": "os.system"}}, "LightningCLI's in "
                    "'odd.ckpt', got 'os.system', which could run any code"),
    "a list": ([1, 2], "which has no `state_dict`, but is a list"),
    "a tensor": (torch.zeros(2), "which has no `state_dict`, but is a Tensor"),
    "bare weights": (torch.nn.Linear(2, 2).state_dict(), "are measured in Python, by measure_geom"),
}  # fmt: skip


@pytest.mark.parametrize(("part", "message"), ODD.values(), ids=ODD)
def test_an_odd_checkpoint_is_refused_in_one_line(project, capsys, part, message):
    whole = torch.load("net.ckpt", weights_only=True)
    is_part = isinstance(part, dict) and "weight" not in part
    torch.save(whole | part if is_part else part, "odd.ckpt")
    line = refusal(capsys, "odd.ckpt", *CLASSES, *CHEAP)
    assert message in line
    assert "odd.ckpt" in line
    assert re.search(
        r" (Save it anew|Give the arg|Take a check|Weights alone)[^.]*(\.[^.]*)?\.$", line
    )


def test_a_step_that_is_no_number_is_left_out(capsys):
    torch.save(torch.load("net.ckpt", weights_only=True) | {"global_step": torch.ones(2)}, "s.ckpt")
    report, _, _ = run(capsys, "s.ckpt", *CLASSES, *CHEAP)
    assert report.settings["global_step"] is None


def broken(kind):
    """Make what is no whole file of Lightning's, and say what is right about it."""
    path, good = Path(f"{kind}.ckpt"), Path("net.ckpt").read_bytes()
    if kind in ("folder", "shards"):
        path.mkdir(exist_ok=True)
        if kind == "shards":
            torch.save({}, path / "meta.pt")
    elif kind == "pipe":
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    elif kind == "garbled":
        at = good.index(b"hyper_parameters")
        path.write_bytes(good[: at - 30] + b"\xff" * 20 + good[at - 10 :])
    elif kind == "protocol":
        torch.save(torch.load("net.ckpt", weights_only=True), path, pickle_protocol=4)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "b")
    else:
        path.write_bytes(good[: {"empty": 0, "cut": len(good) // 2}[kind]])
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "which is empty: writing or copying it was interrupted. Copy it again"),
        ("cut", "which is cut off: writing or copying it was interrupted. Copy it again"),
        ("garbled", "which is broken, or in another form ("),
        ("protocol", "which is broken, or in another form ("),
        ("zip", "which is broken, or in another form ("),
        ("folder", "got a folder at 'folder.ckpt'. Name a file in it."),
        ("shards", "got a folder of shards at 'shards.ckpt'. Make one file of it, and "
                   "measure that: "
                   "python -m lightning.pytorch.utilities.consolidate_checkpoint shards.ckpt"),
        pytest.param("pipe", "got a device or a pipe at 'pipe.ckpt'", marks=pytest.mark.skipif(
            not hasattr(os, "mkfifo"), reason="needs pipes")),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_in_one_line(capsys, kind, message):
    assert message in refusal(capsys, broken(kind), *CLASSES, *CHEAP)


def test_every_reading_of_a_checkpoint_is_restricted_unless_it_is_trusted(capsys, monkeypatch):
    restricted = []
    load = torch.load

    def spy(*args, **options):
        restricted.append(options.get("weights_only"))
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    run(capsys, *USUAL)
    assert len(restricted) >= 3  # to look into it, the module, the datamodule
    if "weights_only" in inspect.signature(LightningModule.load_from_checkpoint).parameters:
        assert set(restricted) == {True}
    restricted.clear()
    run(capsys, *USUAL, "--trust_checkpoint", "true")
    assert True not in restricted


def test_where_lightning_reads_without_restriction_it_gets_what_was_read_with_it(project, capsys):
    flags = ["net.ckpt", "--model=users_net.Unrestricted", "--data=users_net.Data", *CHEAP]
    report, _, _ = run(capsys, *flags)
    assert project.Unrestricted.sources == ["BytesIO"]
    assert numbers(report) == numbers(run(capsys, *USUAL)[0])
    run(capsys, *flags, "--trust_checkpoint", "true")
    assert project.Unrestricted.sources == ["BytesIO", "PosixPath"]


@pytest.mark.parametrize(("args", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(folder, project, capsys, args, message):
    torch.save({"epoch": 1}, "other.ckpt")
    torch.save({"state_dict": {}, "it": project.Other()}, "objects.ckpt")
    Path("bad.yaml").write_text("[")
    Path("list.yaml").write_text("- 1\n")
    Path("model.yaml").write_text("model: [1]\n")
    Path("option.yaml").write_text("num_prob: 1\n")
    assert message in refusal(capsys, *args)


def test_a_trusted_checkpoint_may_hold_objects(project, capsys, tmp_path):
    path = tmp_path / "objects.ckpt"
    torch.save(torch.load("net.ckpt", weights_only=True) | {"it": project.Other()}, path)
    assert "--trust_checkpoint true" in refusal(capsys, str(path), *CLASSES, *CHEAP)
    report, _, _ = run(capsys, str(path), *CLASSES, *CHEAP, "--trust_checkpoint", "true")
    assert numbers(report) == numbers(run(capsys, *USUAL)[0])


def test_an_unmeasured_point_leaves_the_old_report(capsys, tmp_path):
    output = tmp_path / "report.json"
    output.write_text("old")
    for model, status in (("Interrupted", 130), ("Manual", 2)):
        flags = ["--model", f"users_net.{model}", "--data", "users_net.Data", *CHEAP]
        assert main(["measure", "net.ckpt", *flags, "--output", str(output)]) == status
        assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
        assert output.read_text() == "old"
    assert capsys.readouterr().err.splitlines()[0] == "interrupted"


def test_mistakes_of_the_users_code_keep_their_traceback(tmp_path):
    flags = ["net.ckpt", "--data", "users_net.Data", *CHEAP]
    with pytest.raises(ValueError, match="a mistake of the user"):
        main(["measure", *flags, "--model", "users_net.Wrong"])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        main(["measure", *flags, "--model", "users_broken.Net"])


def test_help_names_every_partition_and_order(capsys):
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ", ".join(get_args(PartitionName)) in text
    assert all(order in text for order in get_args(FusedQKV))


def test_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["measure", "--help"]) == 2
    message = "error: lightning-linf measure needs: pip install 'lightning-linf[cli]'\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("args", "status", "stream", "message"),
    [
        (["--help"], 0, "out", "measure the geometry at a Lightning checkpoint"),
        (["report", "--help"], 0, "out", "Write the geometry of runs as one HTML file"),
        (["measure", "--help"], 0, "out", "--num_noise_batches NUM_NOISE_BATCHES Batches for the"),
        ([], 2, "err", "the following arguments are required: COMMAND"),
        (["mesure"], 2, "err", "invalid choice: 'mesure'"),
    ],
)
def test_help_and_commands(capsys, args, status, stream, message):
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == status
    assert message in " ".join(getattr(capsys.readouterr(), stream).split())


def test_help_is_shown_without_importing_torch():
    code = """
        import sys
        from lightning_linf.cli import main
        try:
            main(["measure", "--help"])
        except SystemExit:
            heavy = {"torch", "numpy", "lightning"} & set(sys.modules)
            assert not heavy, heavy
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: lightning-linf measure CHECKPOINT" in done.stdout


@pytest.mark.slow
def test_the_program_from_end_to_end(folder, tmp_path):
    program = Path(sys.executable).with_name("lightning-linf")
    command = [program, "measure", *USUAL, "--output", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Geometry of the loss at one point, d = 32" in done.stdout
    assert GeometryReport.load(tmp_path / "report.json").num_params == 32
    done = subprocess.run(
        [program, "measure", "net.ckpt", "--model", "users_net.Nett"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: measure: expected --model to be the path of a Lightning")


@pytest.mark.slow
@pytest.mark.skipif(not RECIPES.is_dir(), reason="recipes/ is not in the wheel")
def test_the_checkpoint_of_the_recipe_is_measured_by_the_command_it_prints(tmp_path):
    pytest.importorskip("transformers", reason="the recipes need it: lightning-linf[recipes]")
    (tmp_path / "texts").mkdir()
    for number in range(10):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} plus one is more. " * 40)
    choices = "max_steps=4 warmup_steps=1 sequence_length=16 n_layer=1 n_head=2 n_embd=8 "
    choices += "vocab_size=300 batch_size=2 micro_batch=2 val_every=4 smoothness_every=4 "
    choices += "num_probes=4 accelerator=cpu data=texts"
    flags = [f"--{choice}" for choice in choices.split()]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, RECIPES / "gpt2.py", *flags], **options)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("Full report: "))
    command = line.removeprefix("Full report: ")
    assert command.startswith(f"PYTHONPATH={RECIPES} ")
    flags = "--num_probes=4 --num_noise_batches=2 --device=cpu --partitions head --output r.json"
    done = subprocess.run(f"{command} {flags}", shell=True, **options)
    assert (done.returncode, done.stderr) == (0, "")
    settings = GeometryReport.load(tmp_path / "r.json").settings
    assert settings["checkpoint"] == "runs/gpt2-tiny/version_0/checkpoints/last.ckpt"
    assert settings["global_step"] == 4
