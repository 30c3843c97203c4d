"""A folder with a user's project, in which each test of the command runs."""

import importlib
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from support.users_project import PROJECT, QUIET


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
