"""Kernels find tensors by addresses from tables: these are those of the step's own tensors."""

import copy

import pytest
import torch
from support import kept_steps
from support.blockwise import FLOAT32, Net, set_gradients
from support.kept_steps import OPTIMIZERS, assert_follows_one_that_keeps_nothing

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy


EVENTS = [  # those after which an address or the launch of a tensor is another
    kept_steps.no_gradient,
    kept_steps.another_group,
    kept_steps.loaded_state,
    kept_steps.rate_in_a_tensor,
    kept_steps.counts_where_kernels_read_them,
    kept_steps.other_memory,
    kept_steps.other_order_in_memory,
    kept_steps.gradients_in_another_order,
    kept_steps.state_in_other_memory,
    kept_steps.other_counts,
]
NAMES = ("row", "coordinate", "AdaSGD", "Signum")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_after_a_change_is_that_of_an_optimizer_that_keeps_nothing(name, event, device):
    assert_follows_one_that_keeps_nothing(OPTIMIZERS[name], event, device)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_may_change_their_dtype(name, device):
    net = Net().double().to(device)
    twin = copy.deepcopy(net)
    optimizers = [OPTIMIZERS[name](each) for each in (net, twin)]
    for step in range(3):
        set_gradients(net.parameters())
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.float().double()
            p.grad.data = p.grad.data.float() if step % 2 else q.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, **FLOAT32)
