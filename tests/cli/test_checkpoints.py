"""`lightning-linf measure` on checkpoints that are odd, broken, or not to be trusted."""

import inspect
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse", reason="the command needs jsonargparse: lightning-linf[cli]")

from lightning.pytorch import LightningModule
from support.users_project import (
    CHEAP,
    CLASSES,
    USUAL,
    WARNINGS,
    numbers,
    refusal,
    run,
)

pytestmark = [pytest.mark.filterwarnings(line) for line in WARNINGS]


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


def test_a_trusted_checkpoint_may_hold_objects(project, capsys, tmp_path):
    path = tmp_path / "objects.ckpt"
    torch.save(torch.load("net.ckpt", weights_only=True) | {"it": project.Other()}, path)
    assert "--trust_checkpoint true" in refusal(capsys, str(path), *CLASSES, *CHEAP)
    report, _, _ = run(capsys, str(path), *CLASSES, *CHEAP, "--trust_checkpoint", "true")
    assert numbers(report) == numbers(run(capsys, *USUAL)[0])
