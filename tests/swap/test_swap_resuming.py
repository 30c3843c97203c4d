"""A module with GeometryMixin is resumed in its geometries, or refused."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.swapping import SCHEDULES, Gan, Hook, Net, Scheduled, assert_equal_weights, fit, quiet
from torch.optim import SGD, Adam, AdamW

from lightning_linf import Geometry, GeometryMixin
from lightning_linf.optim import Signum
from lightning_linf.reparam import Rotation

pytestmark = quiet


def resume(make, callbacks, path, tmp_path, **options):
    module = make()
    trainer = fit(module, tmp_path, callbacks(), ckpt_path=path, **options)
    return module, trainer


class Swapping(GeometryMixin, Scheduled):
    """Swaps in a hook of its own, at step 4: first to other coordinates, at 6 back."""

    geometry = Geometry("adamw")
    at_4 = Geometry(rotation="global")

    def __init__(self):
        super().__init__(SCHEDULES["sequential"], SGD)

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 4 and len(self._swaps) == 1:
            self.swap_optimizer(self.at_4)
        if self.trainer.global_step == 6 and len(self._swaps) == 2:
            self.swap_optimizer(Geometry())


@pytest.mark.parametrize("step", [2, 4, 5, 6, 7])
def test_resumed_before_at_and_after_swaps_a_module_goes_on_to_the_last_bit(tmp_path, step):
    whole = Swapping()
    trainer = fit(whole, tmp_path, max_steps=9)
    assert type(trainer.optimizers[0]) is AdamW
    fit(Swapping(), tmp_path, max_steps=step).save_checkpoint(tmp_path / "part.ckpt")
    resumed, again = resume(Swapping, list, tmp_path / "part.ckpt", tmp_path, max_steps=9)
    assert again.global_step == 9
    assert_equal_weights(whole, resumed)
    assert resumed.rates == whole.rates[step:]
    states = [t.lr_scheduler_configs[0].scheduler.state_dict() for t in (trainer, again)]
    assert states[0]["_last_lr"] == states[1]["_last_lr"]
    states = [t.optimizers[0].state_dict() for t in (trainer, again)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(*(state["state"] for state in states), rtol=0, atol=0)


def test_one_of_two_optimizers_is_resumed_as_the_one_that_was_swapped(tmp_path):
    def make():
        return GeometryMixin.wrap(Gan(), Geometry())

    def swap():
        return [
            Hook(lambda t, m: len(m._swaps) > 1 or m.swap_optimizer(Geometry("signum"), index=1), 4)
        ]

    whole = make()
    fit(whole, tmp_path, swap(), max_steps=12)
    fit(make(), tmp_path, swap(), max_steps=8).save_checkpoint(tmp_path / "part.ckpt")
    resumed, trainer = resume(make, swap, tmp_path / "part.ckpt", tmp_path, max_steps=12)
    assert [type(o) for o in trainer.optimizers] == [SGD, Signum]
    assert_equal_weights(whole, resumed)


class SwappingToMap(Swapping):
    at_4 = Geometry("adam", rotation=Rotation("tensor", seed=9))


def test_a_swap_to_more_than_names_is_resumed_once_it_is_given_again(tmp_path):
    whole = SwappingToMap()
    fit(whole, tmp_path, max_steps=6)
    path = tmp_path / "part.ckpt"
    fit(SwappingToMap(), tmp_path, max_steps=5).save_checkpoint(path)
    message = (
        r"expected a checkpoint saved under AdamW, got one of AdamW, then Adam under Rotation"
        r".* Resume with that geometry and change it by SwapOptimizer, or load the weights alone"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(SwappingToMap(), tmp_path, ckpt_path=path)
    resumed = SwappingToMap()
    resumed.geometry = SwappingToMap.at_4
    fit(resumed, tmp_path, ckpt_path=path, max_steps=6)
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        (None, Geometry("adam"), "saved under Adam, got one of a run without GeometryMixin"),
        (Geometry("adam"), Geometry("sgd"), "saved under SGD, got one of Adam, whose"),
        (Geometry("adam"), Geometry(), "saved under the same optimizer, got one of Adam"),
        (Geometry("adam", rotation="row"), Geometry("adam"), "under Adam, got one of Adam under R"),
        (Geometry(Adam, rotation=Rotation()), Geometry(SGD), "got one of Adam under Rotation"),
    ],
)
def test_a_checkpoint_of_another_geometry_is_refused(tmp_path, saved, own, message):
    module = Net() if saved is None else GeometryMixin.wrap(Net(), saved)
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match=message):
        fit(GeometryMixin.wrap(Net(), own), tmp_path, ckpt_path=tmp_path / "last.ckpt", max_steps=8)


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        (None, Geometry()),
        (Geometry(Adam, rotation=Rotation()), Geometry(Adam, rotation=Rotation())),
        (Geometry("sgd", lr=0.3), Geometry("sgd", lr=0.1)),  # rates are those of the state
        (Geometry("adam"), Geometry(Adam)),
    ],
)
def test_a_checkpoint_of_the_same_geometry_is_resumed(tmp_path, saved, own):
    def make(geometry):
        return Net() if geometry is None else GeometryMixin.wrap(Net(), geometry)

    whole = make(saved)
    fit(whole, tmp_path)
    fit(make(saved), tmp_path, max_steps=3).save_checkpoint(tmp_path / "part.ckpt")
    resumed = make(own)
    fit(resumed, tmp_path, ckpt_path=tmp_path / "part.ckpt")
    assert_equal_weights(whole, resumed)
