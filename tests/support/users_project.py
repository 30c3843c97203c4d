"""A user's project for `lightning-linf measure`: its source, arguments, and what is measured."""

import dataclasses
from pathlib import Path

from lightning_linf import GeometryReport
from lightning_linf.cli import main

WARNINGS = (
    "ignore:.*does not have many workers",
    "ignore:.*LightningCLI's args parameter",
    "ignore:.*have no `val_dataloader`",
    "ignore:(?s).*(JsonargparseDeprecation|was deprecated in v4)",  # in LightningCLI
)
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
