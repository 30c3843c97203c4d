"""What one step has prepared serves for the next, and not where anything has changed."""

import copy
import weakref

import pytest
import torch
from support.blockwise import Net, set_gradients
from support.kept_steps import EVENTS, OPTIMIZERS, assert_follows_one_that_keeps_nothing


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_after_a_change_is_that_of_an_optimizer_that_keeps_nothing(name, event):
    assert_follows_one_that_keeps_nothing(OPTIMIZERS[name], event, "cpu")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_with_new_gradients_and_rates_are_prepared_once(name, monkeypatch):
    net = Net()
    optimizer = OPTIMIZERS[name](net)
    prepared = []
    prepare = optimizer._prepare
    monkeypatch.setattr(optimizer, "_prepare", lambda: prepared.append(0) or prepare())
    for step in range(4):
        set_gradients(net.parameters())
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
    assert len(prepared) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_holds_no_gradient_and_no_state_that_was_replaced(name):
    net = Net()
    optimizer = OPTIMIZERS[name](net)
    set_gradients(net.parameters())
    optimizer.step()
    gradients = [weakref.ref(p.grad) for p in net.parameters()]
    optimizer.zero_grad()
    assert not any(gradient() is not None for gradient in gradients)
    former = [weakref.ref(state["exp_avg"]) for state in optimizer.state.values()]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not any(m() is not None for m in former)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_prepare_their_own(name):
    net = Net()
    optimizer = OPTIMIZERS[name](net)
    set_gradients(net.parameters())
    optimizer.step()
    before = [p.detach().clone() for p in net.parameters()]
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    twin.step()
    assert all(map(torch.equal, net.parameters(), before))
