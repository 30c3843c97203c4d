"""GeometryMixin swaps at the start of a fit and stays out of the module's way."""

import copy
import pickle
import sys

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.cli import LightningCLI
from support.swapping import (
    GeometryNet,
    Hook,
    Net,
    assert_equal_weights,
    fit,
    momentum_sgd,
    quiet,
    rotated,
    two_groups,
)
from torch import nn
from torch.optim import Adam, AdamW

from lightning_linf import Geometry, GeometryMixin
from lightning_linf.optim import Reparameterized, Signum
from lightning_linf.reparam import Rotation

pytestmark = quiet


class Calling(Net):
    """Overrides the mixin's hooks as modules do, without a call of super."""

    def setup(self, stage):
        self.called = ["setup"]

    def on_fit_start(self):
        self.called.append(type(self.trainer.optimizers[0]).__name__)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["theirs"] = 1

    def on_load_checkpoint(self, checkpoint):
        self.called.append(checkpoint["theirs"])


class CallingSuper(Calling):
    def setup(self, stage):
        super().setup(stage)
        self.called.append("again")

    def on_fit_start(self):
        super().on_fit_start()


class GeometryCalling(GeometryMixin, Calling):
    geometry = Geometry("adam")


class GeometryCallingSuper(GeometryMixin, CallingSuper):
    geometry = Geometry("adam")

    def setup(self, stage):
        super().setup(stage)
        self.called.append("ours")


def test_the_geometry_is_that_of_the_optimizer_made_by_hand(tmp_path):
    def configure(module):
        def make(params):
            return AdamW(params, lr=0.1, betas=(0.9, 0.999), weight_decay=0.0)

        return Reparameterized(module.named_parameters(), make, Rotation("global", seed=5))

    by_hand, mixed, wrapped = Net(configure), GeometryNet(), Net()
    assert GeometryMixin.wrap(wrapped, GeometryNet.geometry) is wrapped
    for module in (by_hand, mixed, wrapped):
        fit(module, tmp_path)
        assert isinstance(module.trainer.optimizers[0], Reparameterized)
        assert_equal_weights(by_hand, module)


@pytest.mark.parametrize("configure", [momentum_sgd, two_groups, rotated])
def test_with_nothing_chosen_training_is_as_it_is_to_the_last_bit(tmp_path, configure):
    plain, module = Net(configure), GeometryMixin.wrap(Net(configure), Geometry())
    fit(plain, tmp_path)
    fit(module, tmp_path)
    assert_equal_weights(plain, module)
    assert module.rates == plain.rates


@pytest.mark.parametrize("kind", [GeometryCalling, GeometryCallingSuper])
def test_the_modules_own_hooks_are_called_after_the_swap(tmp_path, kind):
    module = kind()
    trainer = fit(module, tmp_path)
    assert module.called[0] == "setup"
    assert module.called[-1] == "Adam"
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again, plain = kind(), kind()
    fit(again, tmp_path, ckpt_path=tmp_path / "last.ckpt", max_steps=9)
    assert again.called[-2:] == [1, "Adam"]
    fit(plain, tmp_path, max_steps=9)
    assert_equal_weights(again, plain)


def test_a_second_fit_starts_in_its_first_geometry(tmp_path):
    module = GeometryNet()

    def swap(trainer, module):
        module.swap_optimizer(Geometry("signum"))

    trainer = fit(module, tmp_path, [Hook(swap, 3)])
    assert type(trainer.optimizers[0]) is Signum
    trainer = fit(module, tmp_path)
    assert isinstance(trainer.optimizers[0], Reparameterized)
    assert len(module._swaps) == 1


def test_the_order_of_bases_and_hidden_hooks_are_refused():
    message = (
        r"to come first .* bases of Wrong, got Net before .* class Wrong\(GeometryMixin, Net\)"
    )
    with pytest.raises(TypeError, match=message):

        class Wrong(Net, GeometryMixin):
            pass

    with pytest.raises(TypeError, match=r"Hidden.setup to call super\(\).setup, got an override"):

        class Hidden(GeometryMixin, Net):
            def setup(self, stage):
                self.ready = True

    class Child(GeometryNet):
        def on_save_checkpoint(self, checkpoint):
            GeometryMixin.on_save_checkpoint(self, checkpoint)

    class Other:
        note = 1

    class Beside(Other, GeometryNet):  # has nothing that could hide a hook
        pass

    class Hiding:
        def on_fit_start(self):
            pass

    for kind in (Child, Beside):
        assert kind().geometry is GeometryNet.geometry
    with pytest.raises(TypeError, match="got Hiding before it, whose hooks would hide its own"):

        class Late(Hiding, GeometryNet):
            pass


def test_wrapping_keeps_the_module_and_names_its_class():
    module = Net()
    module.note = "kept"
    wrapped = GeometryMixin.wrap(module, Geometry("adam"))
    assert wrapped is module
    assert isinstance(wrapped, (Net, GeometryMixin))
    assert type(wrapped).__name__ == "GeometryNet"
    assert (wrapped.note, wrapped.geometry.optimizer) == ("kept", "adam")
    kind = type(wrapped)
    again = GeometryMixin.wrap(wrapped, Geometry("sgd"))
    assert (type(again), again.geometry.optimizer) == (kind, "sgd")
    assert type(GeometryMixin.wrap(Net(), Geometry())) is kind
    assert type(GeometryMixin.wrap(GeometryNet(), Geometry())) is GeometryNet


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in torch.compile
def test_what_cannot_be_wrapped_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"GeometryMixin.wrap: expected a LightningModule, got Lin"
    ):
        GeometryMixin.wrap(nn.Linear(1, 1), Geometry())
    compiled = torch.compile(Net())
    with pytest.raises(ValueError, match=r"got OptimizedModule. .* before torch.compile"):
        GeometryMixin.wrap(compiled, Geometry())
    with pytest.raises(ValueError, match=r"expected a Geometry, got 'adam'. Write, say"):
        GeometryMixin.wrap(Net(), "adam")
    module = GeometryNet()
    module.geometry = "adam"
    with pytest.raises(ValueError, match=r"expected a Geometry, got 'adam'. Write, say"):
        fit(module, tmp_path)


class Quiet(GeometryNet):
    """What can be compiled."""

    def training_step(self, batch, batch_idx):
        return self.net(torch.ones(2, 3)).square().mean()


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in torch.compile
def test_a_compiled_module_is_swapped_if_it_was_wrapped_before(tmp_path):
    plain, module = Quiet(), Quiet()
    fit(plain, tmp_path)
    trainer = fit(torch.compile(module, backend="eager"), tmp_path)
    assert isinstance(trainer.optimizers[0], Reparameterized)
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def assert_copies(module, path):
    torch.save(module, path)
    for twin in (
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        torch.load(path, weights_only=False),
    ):
        assert type(twin) is type(module)
        assert twin.geometry == module.geometry
        assert_equal_weights(twin, module)


@pytest.mark.parametrize("wraps", [False, True])
def test_modules_can_be_copied_and_pickled_before_during_and_after_a_fit(tmp_path, wraps):
    module = GeometryMixin.wrap(Net(), Geometry("adam", rotation="row")) if wraps else GeometryNet()
    path = tmp_path / "module.pt"
    assert_copies(module, path)
    fit(module, tmp_path, [Hook(lambda trainer, module: assert_copies(module, path), 3)])
    assert_copies(module, path)
    twin = copy.deepcopy(module)
    for each in (module, twin):
        fit(each, tmp_path)
    assert_equal_weights(module, twin)


def _fit_there(module, tmp_path, queue):
    torch.set_num_threads(1)
    trainer = fit(module, tmp_path)
    queue.put((type(module).__name__, type(trainer.optimizers[0]).__name__))


@pytest.mark.slow  # a new process imports torch
def test_a_wrapped_module_can_be_sent_to_a_new_process(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    module = GeometryMixin.wrap(Net(), Geometry("adam", rotation="row"))
    process = context.Process(target=_fit_there, args=(module, tmp_path, queue))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    assert queue.get() == ("GeometryNet", "Reparameterized")


class Plain(Net):
    def __init__(self):
        super().__init__()


class GeometryPlain(GeometryMixin, Plain):
    geometry = Geometry("adam", rotation="global")


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_weights_load_into_the_plain_module(tmp_path, weights_only):
    module = GeometryPlain()
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    for kind in (Plain, GeometryPlain):
        loaded = kind.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
        assert_equal_weights(module, loaded)
        fit(loaded, tmp_path)  # anew, in its own geometry


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # of jsonargparse, at Lightning's calls
    "ignore:.*configure_optimizers` will be overridden:UserWarning",
)
def test_lightning_cli_gives_the_optimizer_that_the_mixin_replaces(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    arguments = [
        "--seed_everything=0",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.logger=false",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_checkpointing=false",
        "--optimizer=SGD",
        "--optimizer.lr=0.07",
        "--optimizer.momentum=0.6",
        "--lr_scheduler=CosineAnnealingLR",
        "--lr_scheduler.T_max=10",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *arguments])
    cli = LightningCLI(GeometryPlain, save_config_callback=None)
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, Reparameterized)
    assert type(optimizer.inner) is Adam
    assert optimizer.param_groups[0]["lr"] == 0.07
    assert optimizer.param_groups[0]["betas"] == (0.6, 0.999)
    assert cli.trainer.lr_scheduler_configs[0].scheduler.optimizer is optimizer


def test_wrap_leaves_an_attribute_of_the_same_name_alone():
    module = Net(momentum_sgd)
    module.geometry = "a triangle"
    with pytest.raises(ValueError, match=r"without an attribute `geometry` .* SwapOptimizer\(0"):
        GeometryMixin.wrap(module, Geometry("adam"))
    assert type(module) is Net
