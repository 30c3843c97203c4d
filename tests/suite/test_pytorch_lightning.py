"""Everything serves the package ``pytorch_lightning`` as it does ``lightning``: the real one."""

import json
import logging
import sys

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import strategies
from lightning.pytorch.cli import LightningCLI
from lightning_utilities.core import rank_zero
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning import strategies as other_strategies
from pytorch_lightning.cli import LightningCLI as OtherCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from support.two_packages import PACKAGES, data, net_of
from torch import nn

from lightning_linf import Geometry, GeometryMixin, measure_geometry
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
    SwapOptimizer,
)
from lightning_linf.cli import main
from lightning_linf.lightning_packages import counterpart, either, is_either
from lightning_linf.optim import AdaSGD, Reparameterized

# The package that is imported last takes over all messages; other tests read them at the first.
rank_zero.log = logging.getLogger("lightning.fabric.utilities.rank_zero")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*resuming from a checkpoint that ended before the epoch:UserWarning",
)
needs_callbacks = pytest.mark.skipif(
    not RequirementCache("pytorch-lightning>=2.6"),
    reason="pytorch_lightning below 2.6 takes callbacks of its own class only",
)
CLIS = {"lightning": LightningCLI, "pytorch_lightning": OtherCLI}
QUIET = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def monitors():
    return [
        GradientHeterogeneityMonitor(1, on_error="raise"),
        LinfSmoothnessMonitor(2, num_probes=4, on_error="raise", max_overhead=None),
        GradientNoiseMonitor(2, on_error="raise"),
    ]


def fit(package, callbacks=(), module=None, steps=8, ckpt_path=None, **options):
    torch.manual_seed(3)
    module = net_of(package)() if module is None else module
    defaults = {**QUIET, "max_steps": steps, "accumulate_grad_batches": 2, "log_every_n_steps": 1}
    trainer = PACKAGES[package].Trainer(callbacks=[*callbacks], **{**defaults, **options})
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return trainer, module


def numbers(monitor):
    """All that was measured but times and columns; as text, in which NaN equals itself."""
    left = ("probe_seconds", "probe_overhead", "per_tensor", "tensor_names")
    return [{k: repr(v) for k, v in entry.items() if k not in left} for entry in monitor.history]


@needs_callbacks
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_monitors_measure_the_same_in_both_packages(precision):
    found = {}
    for package in PACKAGES:
        callbacks = monitors()
        fit(package, callbacks, precision=precision)
        found[package] = [numbers(monitor) for monitor in callbacks]
    assert found["pytorch_lightning"] == found["lightning"]
    assert [len(history) for history in found["lightning"]] == [8, 4, 4]


@needs_callbacks
def test_training_with_monitors_is_bit_identical():
    _, watched = fit("pytorch_lightning", monitors())
    _, plain = fit("pytorch_lightning")
    for p, q in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@needs_callbacks
@pytest.mark.parametrize("make", [TensorBoardLogger, CSVLogger])
def test_records_lie_beside_what_the_logger_writes(tmp_path, make):
    callbacks = monitors()
    trainer, _ = fit("pytorch_lightning", callbacks, logger=make(tmp_path))
    (path,) = tmp_path.rglob("geometry.jsonl")
    assert str(path.parent) == trainer.logger.log_dir
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == sum(len(monitor.history) for monitor in callbacks)
    if make is TensorBoardLogger:
        (events,) = path.parent.glob("events.out*")
        for monitor in callbacks:
            assert monitor.record_tag.encode() in events.read_bytes()


@needs_callbacks
def test_the_scale_of_a_gradient_scaler_is_found():
    plugins = {
        "lightning": lightning.pytorch.plugins, "pytorch_lightning": pytorch_lightning.plugins
    }  # fmt: skip
    scaled = {}
    for package in PACKAGES:
        scaled[package] = GradientNoiseMonitor(2, on_error="raise")
        scaler = torch.amp.GradScaler("cpu")  # starts with a factor of 65,536
        plugin = plugins[package].MixedPrecision("16-mixed", "cpu", scaler)
        fit(package, [scaled[package]], plugins=[plugin])
    plain = GradientNoiseMonitor(2, on_error="raise")
    fit("pytorch_lightning", [plain])
    assert numbers(scaled["pytorch_lightning"]) == numbers(scaled["lightning"])
    first, expected = (m.history[0]["noise_trace"] for m in (scaled["pytorch_lightning"], plain))
    assert first == pytest.approx(expected, rel=0.05)  # forward passes of float16


@pytest.mark.parametrize("how", ["class", "wrap"])
def test_a_module_is_trained_in_another_geometry(how):
    weights = {}
    geometry = Geometry("adam", rotation="global", lr=1e-2)
    for package in PACKAGES:
        if how == "class":
            cls = net_of(package, mixin=(GeometryMixin,))
            cls.geometry = geometry
            module = cls()
        else:
            module = GeometryMixin.wrap(net_of(package)(), geometry)
        trainer, module = fit(package, module=module)
        assert isinstance(trainer.optimizers[0], Reparameterized)
        weights[package] = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.equal(weights["lightning"], weights["pytorch_lightning"])


@needs_callbacks
def test_a_swap_is_made_again_when_a_run_is_resumed(tmp_path):
    weights = {}
    for package in PACKAGES:
        path = tmp_path / f"{package}.ckpt"
        swap = SwapOptimizer(3, Geometry("adasgd"))
        fit(package, [swap], steps=5)[0].save_checkpoint(path)
        swap = SwapOptimizer(3, Geometry("adasgd"))
        trainer, module = fit(package, [swap], steps=8, ckpt_path=path)
        assert isinstance(trainer.optimizers[0], AdaSGD)
        assert trainer.global_step == 8
        weights[package] = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.equal(weights["lightning"], weights["pytorch_lightning"])


def test_strategies_that_cannot_work_are_refused_under_both_names():
    for package in (strategies, other_strategies):
        trainer = pytorch_lightning.Trainer(**QUIET)
        trainer._accelerator_connector.strategy = package.FSDPStrategy()
        for callback in (*monitors(), SwapOptimizer(1, Geometry("sgd"))):
            with pytest.raises(Exception, match=f"{type(callback).__name__}: expected .*FSDPStr"):
                callback.setup(trainer, net_of("pytorch_lightning")(), "fit")


@needs_callbacks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, at Lightning's calls
@pytest.mark.parametrize("package", PACKAGES)
def test_the_optimizer_of_a_command_line_is_swapped(package, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--optimizer=torch.optim.Adam", "--optimizer.lr=0.01"]
    )
    cls = net_of(package)
    del cls.configure_optimizers
    cls.__module__, cls.__qualname__ = __name__, "Net"
    cls.train_dataloader = lambda self: data()
    swap = SwapOptimizer(1, Geometry("sgd"))
    cli = CLIS[package](
        cls,
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={**QUIET, "max_steps": 3, "callbacks": [swap]},
    )
    cli.trainer.fit(cli.model)
    assert type(cli.trainer.optimizers[0]) is torch.optim.SGD


def test_a_module_without_a_trainer_is_measured():
    x, y = next(iter(data()))
    reports = [measure_geometry(net_of(package)(), [(x, y)], num_probes=4) for package in PACKAGES]
    assert reports[0].one_one_norm == reports[1].one_one_norm
    assert reports[0].one_one_norm > 0


PROJECT = """
import pytorch_lightning
import lightning
from support import two_packages


class Net(two_packages.net_of("pytorch_lightning")):
    pass


class Data(pytorch_lightning.LightningDataModule):
    def train_dataloader(self):
        return two_packages.data()


class OtherData(lightning.LightningDataModule):
    train_dataloader = Data.train_dataloader
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="the command needs lightning-linf[cli]")
    (tmp_path / "others_net.py").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "others_net", raising=False)
    trainer, _ = fit("pytorch_lightning", steps=2)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    return tmp_path


def measure(data_class):
    """Run the command on a checkpoint."""
    classes = ["--model", "others_net.Net", "--data", f"others_net.{data_class}"]
    return main(["measure", "net.ckpt", *classes, "--num_probes", "4", "--device", "cpu"])


def test_a_checkpoint_is_measured(project, capsys):
    assert measure("Data") == 0
    assert "lambda_max" in capsys.readouterr().out


def test_classes_of_two_packages_are_refused(project, capsys):
    assert measure("OtherData") == 2
    assert (
        "error: measure: expected --model and --data of one package, got Net of pytorch_lightning "
        "and OtherData of lightning." in capsys.readouterr().err
    )


def test_a_class_is_found_under_its_other_name_once_that_is_imported(monkeypatch):
    ours, theirs = lightning.LightningModule, pytorch_lightning.LightningModule
    assert either(ours) == (ours, theirs)
    assert is_either(net_of("pytorch_lightning")(), ours)
    assert not is_either(nn.Linear(1, 1), ours)
    assert counterpart(ours, net_of("pytorch_lightning")) is theirs
    assert counterpart(ours, net_of("lightning")()) is ours
    monkeypatch.delitem(sys.modules, theirs.__module__)
    assert either(ours) == (ours,)
