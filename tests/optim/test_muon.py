"""Muon with AdamW against torch's two optimizers on their own parameters."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightning_linf.optim import AdaSGD, MuonWithAdamW, Reparameterized
from lightning_linf.partition import hidden_matrices
from lightning_linf.reparam import Rotation

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(4, 7)

    def forward(self, x):
        return self.head(self.outer(torch.tanh(self.inner(self.tokens(x)))))


def muon(module, named=None, **options):
    named = module.named_parameters() if named is None else named
    return MuonWithAdamW(named, matrices=hidden_matrices(module), **options)


def backward(module, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(7, (2, 20), generator=generator)
    module.zero_grad()
    nn.functional.cross_entropy(module(tokens).float(), targets).backward()


def assert_equal_weights(first, second):
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False, "ns_steps": 3, "adjust_lr_fn": "original"}]
)
def test_every_step_is_that_of_torchs_two_optimizers(options, dtype):
    module = Net().to(dtype)
    other = copy.deepcopy(module)
    own = {"lr": 0.01, "weight_decay": 0.1}
    ours = muon(module, betas=(0.8, 0.95), eps=1e-6, **own, **options)
    matrices = [other.inner.weight, other.outer.weight]
    rest = [p for p in other.parameters() if all(p is not m for m in matrices)]
    options = {"adjust_lr_fn": "match_rms_adamw", **options}
    theirs = [
        torch.optim.Muon(matrices, momentum=0.8, **own, **options),
        torch.optim.AdamW(rest, betas=(0.8, 0.95), eps=1e-6, **own),
    ]
    rates = torch.optim.lr_scheduler.ExponentialLR(ours, 0.9)
    for step in range(20):
        for each in (module, other):
            backward(each, step)
        if step == 3:
            module.inner.weight.grad = other.inner.weight.grad = None
        for optimizer in theirs:
            optimizer.param_groups[0]["lr"] = ours.param_groups[0]["lr"]
            optimizer.step()
        ours.step()
        rates.step()
        assert_equal_weights(module, other)


def test_groups_have_options_of_their_own_and_the_rate_may_be_a_tensor():
    module = Net()
    names = {p: name for name, p in module.named_parameters()}
    groups = [
        {"params": [(names[p], p) for p in module.inner.parameters()], "lr": torch.tensor(0.0)},
        {"params": [(names[p], p) for p in module.outer.parameters()], "weight_decay": 0.5},
    ]
    optimizer = muon(module, groups, lr=0.1)
    optimizer.add_param_group({"params": [(names[p], p) for p in module.head.parameters()]})
    before = copy.deepcopy(module)
    backward(module, 0)
    module.outer.weight.grad.zero_()
    optimizer.step()
    assert torch.equal(module.inner.weight, before.inner.weight)
    torch.testing.assert_close(module.outer.weight, 0.95 * before.outer.weight)
    assert not torch.equal(module.head.weight, before.head.weight)
    optimizer.param_groups[0]["lr"].fill_(0.1)
    optimizer.step()
    assert not torch.equal(module.inner.weight, before.inner.weight)
    assert not torch.equal(module.inner.bias, before.inner.bias)


def test_entries_of_matrices_move_about_as_far_as_adamws():
    module = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 10))
    before = copy.deepcopy(module)
    optimizer = muon(module, lr=0.01)
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    moved = (module[0].weight - before[0].weight).square().mean().sqrt() / 0.01
    assert 0.15 < moved < 0.25  # AdamW's later steps: 0.2 to 0.4, of noise


def test_a_saved_state_goes_on_with_the_same_bits():
    module = Net()
    optimizer = muon(module)
    for step in range(3):
        backward(module, step)
        optimizer.step()
    other = copy.deepcopy(module)
    loaded = muon(other)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for each, stepped in ((module, optimizer), (other, loaded)):
            backward(each, step)
            stepped.step()
        assert_equal_weights(module, other)


def trained_state(make, module=None):
    module = Net() if module is None else module
    optimizer = make(module)
    backward(module, 0)
    optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


def without(key, index):
    def change(state):
        del state["state"][index][key]
        return state

    return change


def of_other_names(module):
    return MuonWithAdamW(module.named_parameters(), matrices=["inner.weight"])


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: trained_state(lambda m: torch.optim.AdamW(m.named_parameters())), "one without"),
        (lambda: trained_state(lambda m: AdaSGD(m.named_parameters())), "one without adjust_lr_fn"),
        (
            lambda: trained_state(of_other_names),
            r"`momentum_buffer` of shape \(4, 6\) for parameter 3 \(outer.weight\).*NoneType",
        ),
        (
            lambda: without("exp_avg_sq", 2)(trained_state(muon)),
            r"`exp_avg_sq` of shape \(6,\) for parameter 2 \(inner.bias\).*NoneType",
        ),
        (lambda: without("step", 2)(trained_state(muon)), r"`step` of shape \(\) .*NoneType"),
        (
            lambda: trained_state(lambda m: muon(m, list(m.named_parameters())[::-1])),
            "expected tokens.weight as parameter 0, got head.bias",
        ),
    ],
)
def test_a_state_of_others_is_refused_and_changes_nothing(saved, message):
    module = Net()
    optimizer = muon(module)
    backward(module, 1)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"MuonWithAdamW.load_state_dict: .*{message}"):
        optimizer.load_state_dict(saved())
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"], rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_in_other_coordinates_the_same_parameters_are_matrices():
    module = Net()
    names = hidden_matrices(module)
    optimizer = Reparameterized(
        module.named_parameters(), lambda p: MuonWithAdamW(p, matrices=names), Rotation("tensor")
    )
    backward(module, 0)
    optimizer.step()
    found = [name for name, p in module.named_parameters() if len(optimizer.state[p]) == 1]
    assert found == names


def sparse_step():
    module = nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = muon(module)
    module(torch.tensor([1])).sum().backward()
    before = copy.deepcopy(module)
    try:
        optimizer.step()
    finally:
        assert_equal_weights(module, before)


def complex_matrix():
    named = [("weight", nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)))]
    return MuonWithAdamW(named, matrices=["weight"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(muon, Net(), lr=-1.0), "expected `lr` to be a finite number >= 0, got -1.0"),
        (partial(muon, Net(), eps=-1.0), "expected `eps` to be"),
        (partial(muon, Net(), weight_decay=-1.0), "expected `weight_decay` to be"),
        (partial(muon, Net(), betas=(1.0, 0.9)), r"expected `betas\[0\]` to be"),
        (partial(muon, Net(), betas=0.9), "expected two `betas`"),
        (partial(muon, Net(), ns_steps=0), "expected `ns_steps` >= 1, got 0"),
        (partial(muon, Net(), adjust_lr_fn="mine"), "expected `adjust_lr_fn` to be one of"),
        (partial(muon, Net(), Net().parameters()), "expected parameters with names, by which"),
        (partial(muon, Net().head), "expected names of parameters in `matrices`, got .*none is"),
        (
            lambda: MuonWithAdamW(Net().named_parameters(), matrices=["inner.bias"]),
            r".* of two dimensions, got inner.bias of shape \(6,\) in `matrices`. Leave it out",
        ),
        (complex_matrix, "expected real parameters .* got weight of torch.complex64"),
        (sparse_step, "expected dense gradients, got a sparse one"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"MuonWithAdamW: {message}"):
        call()


def test_an_older_torch_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match=r"MuonWithAdamW: expected torch 2.9 or newer, which"):
        muon(Net())
