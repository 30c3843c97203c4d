"""Steps by kernels: against the definition, and against the plain forms in all that may vary."""

import copy

import pytest
import torch
from support.blockwise import FLOAT32, PARTITIONS, ROUNDING, Net, Reference, labels_of
from support.blockwise import set_gradients
from torch import nn

from lightning_linf.optim import AdaSGD, BlockwiseAdam, Signum
from lightning_linf.optim.blockwise import step as steps
from lightning_linf.partition import Partition

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy

OPTIONS = {
    "defaults": {},
    "decay": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "ascent inside": {"maximize": True, "lr": 0.01, "eps_inside": True, "eps": 1e-2},
    "no momentum": {"eps": 0.1, "betas": (0.0, 0.5), "weight_decay": 0.3},
}


@pytest.fixture
def only_kernels(monkeypatch):
    """Fail where a step would take the plain form."""

    def refuse(inputs):
        raise AssertionError("a step without kernels")

    monkeypatch.setattr(steps, "single_tensor_step", refuse)
    monkeypatch.setattr(steps, "fused_step", refuse)


def stepped(make, net, num_steps=3, device="cpu", gradients=set_gradients, **options):
    """Make steps of a copy of a network, and give it with its optimizer."""
    net = copy.deepcopy(net).to(device)
    optimizer = make(net, **options)
    torch.manual_seed(1)
    for _ in range(num_steps):
        gradients(net.parameters())
        optimizer.step()
    return net, optimizer


@pytest.mark.usefixtures("only_kernels")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "by_function"])
def test_every_step_is_that_of_the_definition(name, options, device):
    net = Net().double().to(device)
    partition, params = PARTITIONS[name](net), list(net.parameters())
    chosen = OPTIONS[options]
    optimizer = BlockwiseAdam(net.named_parameters(), partition=partition, **chosen)
    reference = Reference(params, labels_of(partition), [chosen] * len(params))
    for step in range(3):
        set_gradients(params)
        if step == 1:  # neither in the mean of its block, nor in the counts
            params[2].grad = params[5].grad = None
        optimizer.step()
        reference.step([p.grad for p in params])
        reference.assert_equals(params, **ROUNDING)
