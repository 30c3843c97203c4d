"""What a loss changes on the trainer's side is put back, or refused by name."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.probe import Landscape
from lightning_linf.probe.errors import RestoreError
from lightning_linf.probe.trainer_state import TrainerState

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Average(lightning.Callback):
    """A running mean, in tensors that are too large to be copied, and a small one."""

    def __init__(self):
        self.mean, self.copy, self.small = torch.zeros(5000), nn.Linear(5000, 1), torch.zeros(9)


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
    trainer.fit(module, DataLoader(torch.ones(16, 4), batch_size=4))
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


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (step_optimizer, "what Adam steps or keeps"),
        (forget_moments, "what Adam steps or keeps"),
        (average_in_place, r"Average\.mean"),
        (average_in_a_module, r"Average\.copy\..*weight"),
    ],
)
def test_what_cannot_be_put_back_ends_the_training_and_is_named(tmp_path, change, name):
    monitor = LinfSmoothnessMonitor(2, num_probes=4)  # on_error="warn"
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
    with TrainerState(nn.Linear(1, 1)).unchanged(), TrainerState(Module(no_change)).unchanged():
        pass
