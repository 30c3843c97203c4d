"""Schedules of learning rates and momenta go on through a swap."""

import pytest
import torch
from support.swapping import (
    SCHEDULES,
    Hook,
    Net,
    Scheduled,
    Wrapper,
    cosine,
    fit,
    momentum_sgd,
    quiet,
    swapping,
)
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedulers

from lightning_linf import Geometry
from lightning_linf.swap.trainer import swap_optimizers

pytestmark = quiet


@pytest.mark.parametrize("lr", [None, 0.4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_go_on_as_scheduled(tmp_path, name, lr):
    plain, module = Scheduled(SCHEDULES[name]), Scheduled(SCHEDULES[name])
    fit(plain, tmp_path, max_steps=8)
    first = {}

    def swap(trainer, module):
        group = trainer.optimizers[0].param_groups[0]
        first["lr"] = group.get("initial_lr", group["lr"])
        swap_optimizers(trainer, module, Geometry("sgd", lr=lr))

    fit(module, tmp_path, [Hook(swap, 3)], max_steps=8)
    factor = 1.0 if lr is None else lr / first["lr"]
    assert module.rates[:3] == plain.rates[:3]
    for ours, theirs in zip(module.rates[3:], plain.rates[3:], strict=True):
        assert ours == pytest.approx([factor * rate for rate in theirs], rel=1e-12)
    assert module.momenta == plain.momenta  # beta1 and momentum, which some cycle


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("lr", [None, 0.2])
def test_a_rate_in_a_tensor_goes_on_as_scheduled(tmp_path, step, lr):
    def configure(module):
        optimizer = Adam(module.parameters(), lr=torch.tensor(0.1))
        return [optimizer], [{"scheduler": cosine(optimizer), "interval": "step"}]

    plain, module = Net(configure), Net(configure)
    fit(plain, tmp_path)
    fit(module, tmp_path, [swapping(Geometry("adamw", lr=lr), step)])
    rates = [(1 if i < step or lr is None else 2) * rate for i, (rate,) in enumerate(plain.rates)]
    assert [rate for (rate,) in module.rates] == pytest.approx(rates)
    assert len(set(rates)) == 6


@pytest.mark.parametrize("name", ["cycle", "cyclic"])
def test_cycled_momentum_of_sgd_goes_on_as_beta1(tmp_path, name):
    plain = Scheduled(SCHEDULES[name], kind=SGD)
    module = Scheduled(SCHEDULES[name], kind=SGD)
    fit(plain, tmp_path, max_steps=8)
    fit(module, tmp_path, [swapping(Geometry("adamw", rotation="global"))], max_steps=8)
    assert module.momenta == plain.momenta
    assert len(set(module.momenta)) > 2


def test_a_plateau_is_still_met_with_a_lower_rate(tmp_path):
    def configure(module):
        optimizer = momentum_sgd(module)
        scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.004)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "flat"},
        }

    plain, same, double = Net(configure), Net(configure), Net(configure)
    options = {"max_steps": 10, "limit_train_batches": 2}
    fit(plain, tmp_path, **options)
    fit(same, tmp_path, [swapping(Geometry("adam"), 3)], **options)
    fit(double, tmp_path, [swapping(Geometry("adam", lr=0.2), 3)], **options)
    assert same.rates == plain.rates
    assert [r for (r,) in double.rates[3:]] == pytest.approx([2 * r for (r,) in plain.rates[3:]])
    assert len({r for (r,) in plain.rates}) == 3  # 0.1, 0.01 and the least


def test_a_swap_before_the_first_step_raises_no_warning_of_torch(tmp_path):
    module = Scheduled(SCHEDULES["cosine"])
    fit(module, tmp_path, [swapping(Geometry("sgd"), 0)])  # warnings are errors here


class Keeping(Wrapper):
    """A scheduler with learning rates of its own, as other libraries have."""

    def __init__(self, scheduler):
        super().__init__(scheduler)
        self.held = scheduler.optimizer


def test_a_scheduler_that_would_set_the_rate_again_is_refused_beside_lr(tmp_path):
    module = Scheduled(lambda optimizer: Keeping(cosine(optimizer)))
    with pytest.raises(ValueError, match=r"a scheduler of torch beside `lr`, got Keeping.*Leave"):
        fit(module, tmp_path, [swapping(Geometry("adam", lr=0.2))])
