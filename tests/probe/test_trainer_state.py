"""What a loss changes on the trainer's side is put back, or refused by name."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.errors import RestoreError
from lightning_linf.probe import Landscape
from lightning_linf.probe.trainer_state import TrainerState

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Tally:
    __slots__ = ("count", "losses", "unset")

    def __init__(self):
        self.count, self.losses = 0, []


class Average(lightning.Callback):
    """A running mean, in tensors that are too large to be copied, and a small one."""

    def __init__(self):
        self.mean, self.copy, self.small = torch.zeros(5000), nn.Linear(5000, 1), torch.zeros(9)
        self.tally, self.norm = Tally(), nn.BatchNorm1d(4)


class Module(lightning.LightningModule):
    def __init__(self, change):
        super().__init__()
        self.net, self.change, self.first = nn.Linear(4, 1), change, None

    def training_step(self, batch, batch_idx):
        self.change(self)
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": plateau, "monitor": "loss", "frequency": 10**6}]


def fit(module, tmp_path, *callbacks):
    trainer = lightning.Trainer(
        max_steps=4,
        callbacks=[Average(), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader(Subset(torch.ones(16, 4), range(16)), batch_size=4))
    return trainer


def no_change(module):
    pass


def step_optimizer(module):
    module.trainer.optimizers[0].step()


def average_in_place(module):
    module.trainer.callbacks[0].mean.add_(1)


def average_in_a_module(module):
    with torch.no_grad():
        module.trainer.callbacks[0].copy.weight.add_(1)


def forget_moments(module):
    module.trainer.optimizers[0].state.clear()


def count_in_the_state(module):
    for state in module.trainer.optimizers[0].state.values():
        state["calls"] = state.get("calls", 0) + 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (step_optimizer, "what Adam steps or keeps"),
        (forget_moments, "what Adam steps or keeps"),
        (count_in_the_state, "what Adam steps or keeps"),
        (average_in_place, r"Average\.mean"),
        (average_in_a_module, r"Average\.copy\..*weight"),
    ],
)
def test_what_cannot_be_put_back_ends_the_training_and_is_named(tmp_path, change, name):
    monitor = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)  # on_error="warn"
    with pytest.raises(RestoreError, match=rf"changed {name} in place. Define probe_loss"):
        fit(Module(change), tmp_path, monitor)


def test_small_tensors_containers_and_attributes_are_put_back(tmp_path):
    module = Module(no_change)
    trainer = fit(module, tmp_path)
    average, group = trainer.callbacks[0], trainer.optimizers[0].param_groups[0]
    plateau = trainer.lr_scheduler_configs[0].scheduler
    average.count, average.list = torch.tensor(1), [1]
    before = plateau.state_dict(), dict(group), trainer.fit_loop.epoch_progress.current.completed
    with TrainerState(module).unchanged():
        average.count += 1
        average.list.append(2)
        average.small.add_(1)
        average.new = 3
        del average.mean
        plateau.step(1e3)
        group["lr"] = 7.0
        trainer.fit_loop.epoch_progress.current.completed += 5
        trainer.should_stop = True
    assert (average.count, average.list, hasattr(average, "new")) == (1, [1], False)
    assert average.mean.numel() == 5000
    assert not average.small.any()
    assert before == (
        plateau.state_dict(),
        group,
        trainer.fit_loop.epoch_progress.current.completed,
    )
    assert not trainer.should_stop


def test_what_happens_between_evaluations_remains(tmp_path):
    """Such as a signal that asks the training to stop, while products are formed."""
    module = Module(no_change)
    trainer = fit(module, tmp_path)
    with Landscape(module, [torch.ones(4, 4)] * 2) as landscape:
        landscape.gradient()
        trainer.should_stop = True
        landscape.gradient()
    assert trainer.should_stop


def test_a_module_without_a_trainer_needs_none():
    module = Module(no_change)
    with TrainerState(nn.Linear(1, 1)).unchanged(), TrainerState(module).unchanged():
        module.first = 1
    assert module.first == 1  # which is put back elsewhere


def test_slots_are_put_back(tmp_path):
    module = Module(no_change)
    tally = fit(module, tmp_path).callbacks[0].tally
    with TrainerState(module).unchanged():
        tally.count += 1
        tally.losses.append(0.5)
    assert (tally.count, tally.losses) == (0, [])


def test_statistics_of_batchnorm_which_change_without_a_version_are_put_back(tmp_path):
    module = Module(no_change)
    norm = fit(module, tmp_path).callbacks[0].norm
    version = norm.running_mean._version
    with TrainerState(module).unchanged():
        norm(torch.randn(8, 4))
        assert norm.running_mean.any()
    assert not norm.running_mean.any()
    assert norm.running_mean._version == version


def test_attributes_of_data_sets_loaders_and_samplers_are_put_back(tmp_path):
    module = Module(no_change)
    loader = fit(module, tmp_path).train_dataloader
    parts = loader, loader.dataset, loader.batch_sampler, loader.sampler
    with TrainerState(module).unchanged():
        for part in parts:
            part.__dict__["level"] = 1
    assert not any(hasattr(part, "level") for part in parts)


class Schedules(Module):
    """Steps a schedule that the trainer does not know, of its optimizer or of another."""

    def __init__(self, is_of_another):
        super().__init__(no_change)
        self.is_of_another = is_of_another
        self.stepped = []

    def training_step(self, batch, batch_idx):
        self.stepped[0].step()
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        other = torch.optim.SGD([torch.ones(1)], lr=0.1)
        scheduled = other if self.is_of_another else optimizer
        self.stepped = [torch.optim.lr_scheduler.CosineAnnealingLR(scheduled, 3)]
        other.step()  # a schedule warns of an optimizer that has not
        return optimizer


@pytest.mark.parametrize("is_of_another", [False, True])
def test_a_schedule_that_the_module_holds_is_put_back(tmp_path, is_of_another):
    seen = []
    for callbacks in (
        [],
        [LinfSmoothnessMonitor(1, num_probes=4, on_error="raise", max_overhead=None)],
    ):
        torch.manual_seed(0)
        module = Schedules(is_of_another)
        fit(module, tmp_path, *callbacks)
        schedule = module.stepped[0]
        rate = schedule.optimizer.param_groups[0]["lr"]
        seen.append((schedule.last_epoch, rate, module.net.weight.tolist()))
    assert seen[0] == seen[1]


def test_an_optimizer_that_a_plain_module_holds_is_put_back():
    module = nn.Linear(2, 1)
    module.held = {"optimizer": torch.optim.SGD(module.parameters(), lr=0.1)}
    group = module.held["optimizer"].param_groups[0]

    def loss(module, batch):
        group["lr"] *= 0.5
        return module(batch).square().mean()

    with Landscape(module, [torch.ones(3, 2)], loss=loss) as landscape:
        landscape.gradient()
    assert group["lr"] == 0.1
