"""Parameters that join during training, by Lightning's finetuning callbacks, under a rotation."""

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from support.swapping import Net, fit
from torch.optim import SGD

from lightning_linf import Geometry, GeometryMixin, Rotation
from lightning_linf.optim import AdaSGD, Reparameterized

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Unfreezing(BaseFinetuning):
    """Trains the first layer, too, from the second epoch on."""

    def __init__(self, thaws=False):
        super().__init__()
        self.thaws = thaws  # when it is resumed: Lightning does not

    def on_fit_start(self, trainer, pl_module):
        if self.thaws:
            self.make_trainable(pl_module.net[0])
        super().on_fit_start(trainer, pl_module)

    def freeze_before_training(self, module):
        self.freeze(module.net[0])

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.net[0], optimizer, lr=0.05)


def trainable(module):
    return [p for p in module.parameters() if p.requires_grad]


def sgd(module):
    return SGD(trainable(module), lr=0.1, momentum=0.9)


def rotated(module):
    return Reparameterized(
        trainable(module), lambda p: SGD(p, lr=0.1, momentum=0.9), Rotation("global")
    )


def wrapped():
    return GeometryMixin.wrap(Net(sgd), Geometry(rotation="global"))


@pytest.mark.parametrize("make", [wrapped, lambda: Net(rotated)])
def test_sgd_is_not_changed_by_a_rotation_of_what_joins(tmp_path, make):
    plain, module = Net(sgd), make()
    start = module.net[0].weight.detach().clone()
    epochs = {"limit_train_batches": 4, "max_epochs": 3, "max_steps": -1}
    fit(plain, tmp_path, [Unfreezing()], **epochs)
    trainer = fit(module, tmp_path, [Unfreezing()], **epochs)
    assert not torch.equal(module.net[0].weight, start)
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)  # of float32
    assert module.rates == plain.rates
    (optimizer,) = trainer.optimizers
    maps = [group["reparameterization"].split(" in ")[0] for group in optimizer.param_groups]
    assert maps == ["2 of 2 tensors", "2 of 2 tensors"]


def test_a_block_may_grow_by_what_joins(tmp_path):
    module = Net(lambda module: AdaSGD(trainable(module), lr=0.01))
    trainer = fit(
        module, tmp_path, [Unfreezing()], limit_train_batches=4, max_epochs=3, max_steps=-1
    )
    (blocks,) = trainer.optimizers[0]._block_sets
    assert len(blocks.params) == 4


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended:UserWarning")
def test_a_resumed_run_is_refused_as_long_as_what_had_joined_is_frozen(tmp_path):
    epochs = {"limit_train_batches": 4, "max_epochs": 2, "max_steps": -1}
    trainer = fit(Net(rotated), tmp_path, [Unfreezing()], **epochs)
    path = tmp_path / "joined.ckpt"
    trainer.save_checkpoint(path)
    epochs["max_epochs"] = 3
    with pytest.raises(ValueError, match=r"2 of 2 tensors.*frozen parameters of the run that"):
        fit(Net(rotated), tmp_path, [Unfreezing()], path, **epochs)

    whole, resumed = Net(rotated), Net(rotated)
    fit(whole, tmp_path, [Unfreezing()], **epochs)
    fit(resumed, tmp_path, [Unfreezing(thaws=True)], path, **epochs)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
