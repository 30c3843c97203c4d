"""On shards, Muon makes the steps of one process, but for the rounding of its bfloat16 products."""

import copy

import pytest
import torch
from support.ranks import assert_close, in_two_processes, weights
from support.sharded_net import data, net
from torch.distributed.checkpoint import state_dict as checkpoints

from lightning_linf.optim import MuonWithAdamW
from lightning_linf.partition import hidden_matrices

pytestmark = [
    pytest.mark.slow,  # forks processes
    pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9"),
]
NAMES = [f"{layer}.weight" for layer in ("inner", *(f"attention.{n}" for n in "qkv"))]
NAMES += ["attention.out.weight"]


def muon(module):
    return MuonWithAdamW(module.named_parameters(), lr=0.01, weight_decay=0.1, matrices=NAMES)


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module, mesh = net(), init_device_mesh("cpu", (2,))
    del module.unused  # torch saves no state of it, and asks for one
    for part in (module.attention, module):
        fully_shard(part, mesh=mesh)
    return module


def train(module, optimizer, num_steps, rank=0, num_ranks=1):
    x, y = (tensor[rank::num_ranks] for tensor in data())
    for _ in range(num_steps):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    return weights(module)


def test_names_are_those_that_are_found_also_on_shards(tmp_path):
    found = in_two_processes(lambda rank: hidden_matrices(sharded()), tmp_path)
    assert found == [NAMES, NAMES]
    assert hidden_matrices(net()) == NAMES


@pytest.fixture
def in_float64(monkeypatch):
    """Have torch's iteration round to float64, so that ranks differ by the order of sums alone."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)


@pytest.mark.usefixtures("in_float64")
def test_steps_on_two_ranks_are_those_of_one_process_and_go_on_from_a_state(tmp_path):
    options = checkpoints.StateDictOptions(full_state_dict=True)

    def on_rank(rank):
        module = sharded()
        optimizer = muon(module)
        train(module, optimizer, 10, rank, 2)
        other = sharded()
        with torch.no_grad():
            for p, q in zip(other.parameters(), module.parameters(), strict=True):
                p.copy_(q)
        resumed = muon(other)
        state = checkpoints.get_optimizer_state_dict(module, optimizer, options=options)
        state = copy.deepcopy(state)  # the counts of steps are the optimizer's own tensors
        checkpoints.set_optimizer_state_dict(other, resumed, state, options=options)
        kept = module.outer.weight, module.inner.weight
        keys = [list(optimizer.state[p]) for p in kept]
        momentum = optimizer.state[module.inner.weight]["momentum_buffer"].to_local().shape
        runs = [train(*each, 10, rank, 2) for each in ((module, optimizer), (other, resumed))]
        return keys, tuple(momentum), *runs

    module = net()
    del module.unused
    expected = train(module, muon(module), 20)
    for keys, momentum, ours, resumed in in_two_processes(on_rank, tmp_path):
        assert keys == [["step", "exp_avg", "exp_avg_sq"], ["momentum_buffer"]]
        assert momentum == (3, 4)  # of (6, 4)
        assert_close(ours, expected)
        assert_close(resumed, ours, rtol=0, atol=0)


def test_in_bfloat16_a_step_differs_by_its_rounding(tmp_path):
    def on_rank(rank):
        module = sharded()
        return train(module, muon(module), 1, rank, 2)

    module = net()
    del module.unused
    start = weights(module)
    expected = train(module, muon(module), 1)
    for ours in in_two_processes(on_rank, tmp_path):
        for name in ours:
            step, error = expected[name] - start[name], ours[name] - expected[name]
            # The iteration stretches small singular values 500 times, and their rounding with them.
            most = 0.2 if name in NAMES else 1e-10
            assert error.norm() <= most * step.norm(), name
