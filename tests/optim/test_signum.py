"""Signum against its algorithm, in Python numbers."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lightning_linf.optim import Signum

ROUNDING = {"rtol": 1e-12, "atol": 1e-14}
FORMS = [None, False]


def sign(x):
    return (x > 0) - (x < 0)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_every_step_is_that_of_the_algorithm(momentum, maximize, foreach):
    p = nn.Parameter(torch.randn(7, dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(2))
    lr, decay = 0.01, 0.1
    optimizer = Signum([p, frozen], lr, momentum, decay, maximize=maximize, foreach=foreach)
    theta, m = p.tolist(), [0.0] * 7
    for _ in range(50):
        p.grad = torch.randn_like(p) * (torch.rand_like(p) > 0.2)
        for i, g in enumerate(p.grad.tolist()):
            m[i] = momentum * m[i] + (1 - momentum) * (-g if maximize else g)
            theta[i] -= lr * (sign(m[i]) + decay * theta[i])
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.tensor(theta, dtype=p.dtype), **ROUNDING)
    assert optimizer.state.keys() == {p}
    assert optimizer.state[p].keys() == {"exp_avg"}
    assert torch.equal(frozen, torch.ones(2))


@pytest.mark.parametrize("foreach", FORMS)
def test_groups_have_options_of_their_own_and_the_rate_may_be_a_tensor(foreach):
    p, q, r = (nn.Parameter(torch.ones(n)) for n in (1, 2, 3))
    r.data = r.data.bfloat16()
    lr = torch.tensor(0.25)
    groups = [{"params": [p], "lr": 0.5, "maximize": True}, {"params": [q, r]}]
    optimizer = Signum(groups, lr=lr, foreach=foreach)
    for t in (p, q, r):
        t.grad = torch.ones_like(t)
    optimizer.step()
    lr.fill_(0.125)
    optimizer.step()
    assert torch.equal(p, torch.full((1,), 2.0))
    assert torch.equal(q, torch.full((2,), 0.625))
    assert torch.equal(r, torch.full((3,), 0.625, dtype=torch.bfloat16))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_and_loaded_states_continue(copied):
    p = nn.Parameter(torch.randn(5))
    optimizer = Signum([("p", p)], foreach=False)
    p.grad = torch.randn(5)
    optimizer.step()
    twin = copied(optimizer)
    (q,) = twin.param_groups[0]["params"]
    r = nn.Parameter(p.detach().clone())
    loaded = Signum([r])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    p.grad = torch.randn(5)
    for t, each in ((p, optimizer), (q, twin), (r, loaded)):
        t.grad = p.grad.clone()
        each.step()
        assert torch.equal(t, p)


def test_closure_is_evaluated_with_gradients_and_returned():
    p = nn.Parameter(torch.ones(2))
    optimizer = Signum([p])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert (p < 1).all()


def ones(**kwargs):
    return nn.Parameter(torch.ones(2, **kwargs))


MISUSE = {
    "lr": (lambda: Signum([ones()], lr=-1.0), "Signum: expected `lr` to be a finite number >= 0"),
    "lr nan": (lambda: Signum([ones()], lr=math.nan), "`lr` to be a finite number"),
    "momentum": (lambda: Signum([ones()], momentum=1.0), r"`momentum` to be a number in \[0, 1\)"),
    "decay": (lambda: Signum([ones()], weight_decay=-1.0), "`weight_decay` to be a finite"),
    "group": (lambda: Signum([{"params": [ones()], "lr": -1.0}]), "`lr` to be a finite"),
    "complex": (lambda: Signum([ones(dtype=torch.complex64)]), "expected real parameters, got"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_with_a_remedy(name):
    call, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_refused_groups_are_not_kept():
    optimizer = Signum([ones()])
    with pytest.raises(ValueError, match="`lr`"):
        optimizer.add_param_group({"params": [ones()], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="Signum: expected dense gradients"):
        Signum(embedding.parameters()).step()


@pytest.mark.gpu
@pytest.mark.parametrize("foreach", FORMS)
def test_step_on_a_gpu_is_that_of_the_cpu_and_waits_for_nothing(foreach):
    p = nn.Parameter(torch.randn(100))
    q = nn.Parameter(p.detach().cuda())
    cpu, gpu = Signum([p]), Signum([q], foreach=foreach)
    for _ in range(5):
        p.grad = torch.randn(100)
        q.grad = p.grad.cuda()
        cpu.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            gpu.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(q.cpu(), p)
