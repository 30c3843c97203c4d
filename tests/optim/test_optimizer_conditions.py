"""What torch asks of all its optimizers, asked of ours."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lightning_linf import Partition
from lightning_linf.optim import AdaSGD, BlockwiseAdam, MuonWithAdamW, Reparameterized, Signum
from lightning_linf.partition import hidden_matrices
from lightning_linf.reparam import Permutation, Rotation, Scaling

NAMES = ("coordinate", "row", "tensor", "global")


def blockwise(name, **options):
    def make(module):
        partition = Partition.of(module, name)
        return BlockwiseAdam(module.named_parameters(), lr=0.1, partition=partition, **options)

    return make


def signum(**options):
    return lambda module: Signum(module.parameters(), lr=0.1, **options)


def mapped(reparameterization, kind=None):
    kind = kind or (lambda p: torch.optim.Adam(p, lr=0.1))
    return lambda module: Reparameterized(module.named_parameters(), kind, reparameterization)


FORMS = {"default": {}, "one by one": {"foreach": False}}
PLAIN = {
    **{
        f"{name}, {form}": blockwise(name, **options)
        for name in NAMES
        for form, options in FORMS.items()
    },
    "AdaSGD": lambda module: AdaSGD(module.parameters(), lr=0.1),
    "capturable": blockwise("row", capturable=True),
    **{f"Signum, {form}": signum(**options) for form, options in FORMS.items()},
    "signSGD": signum(momentum=0.0, weight_decay=0.1),
    "Signum by a tensor": lambda module: Signum(module.parameters(), lr=torch.tensor(0.1)),
}
MAPPED = {
    **{scope: mapped(Rotation(scope)) for scope in ("global", "tensor", "row", "column")},
    "permuted": mapped(Permutation()),
    "permuted within": mapped(Permutation("tensor")),
    "scaled": mapped(Scaling(2.0)),
    "composed": mapped(Scaling(2.0) @ Rotation("row")),
    "rotated Signum": mapped(Rotation(), lambda p: Signum(p, lr=0.1)),
    "rotated AdaSGD": mapped(Rotation("tensor"), lambda p: AdaSGD(p, lr=0.1)),
}
if hasattr(torch.optim, "Muon"):  # torch 2.9
    PLAIN["Muon"] = lambda module: MuonWithAdamW(
        module.named_parameters(), lr=0.1, matrices=hidden_matrices(module)
    )
    MAPPED["rotated Muon"] = lambda module: Reparameterized(
        module.named_parameters(),
        lambda p: MuonWithAdamW(p, lr=0.1, matrices=hidden_matrices(module)),
        Rotation("global"),
    )
KINDS = {**PLAIN, **MAPPED}


class Holed(nn.Module):
    """With parameters that have no entries, at the start, in the middle and at the end."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.empty(0, 4))
        self.layer = nn.Linear(3, 2)
        self.embedding = nn.Embedding(0, 3)
        self.outer = nn.Linear(2, 2)
        self.last = nn.Parameter(torch.empty(0))

    def forward(self, x):
        empty = self.first.sum() + self.embedding.weight.sum() + self.last.sum()
        return self.outer(self.layer(x)).square().sum() + empty


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def set_gradients(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_without_entries_change_nothing(name):
    module = Holed()
    plain = nn.Module()
    plain.layer, plain.outer = copy.deepcopy(module.layer), copy.deepcopy(module.outer)
    ours, theirs = KINDS[name](module), KINDS[name](plain)
    full = [p for p in module.parameters() if p.numel()]
    for seed in range(3):
        set_gradients(plain, seed)
        for p in (module.first, module.embedding.weight, module.last):
            p.grad = torch.empty_like(p)
        for p, q in zip(full, plain.parameters(), strict=True):
            p.grad = q.grad.clone()
        ours.step()
        theirs.step()
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    ours.step()
    theirs.step()
    if name in ("tensor", "row", "composed", "rotated AdaSGD"):  # a rotation for each tensor
        assert all(p.isfinite().all() for p in full)
    else:
        assert_equal(full, plain.parameters())


@pytest.mark.parametrize("partition", ["coordinate", "tensor", "global"])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_nothing_but_parameters_without_entries_is_taken(partition, foreach):
    p = nn.Parameter(torch.empty(0, 4))
    p.grad = torch.empty_like(p)
    for optimizer in (
        BlockwiseAdam([p], partition=partition, foreach=foreach),
        Signum([p], foreach=foreach),
        Reparameterized([p], lambda q: torch.optim.SGD(q, lr=0.1), Rotation()),
    ):
        optimizer.step()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        states = optimizer.state[p].values()
        assert not any(s.numel() for s in states if isinstance(s, torch.Tensor) and s.ndim > 1)
        assert (p.shape, p.grad.shape) == ((0, 4), (0, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_that_is_not_finite_is_seen_in_the_weights(name, value):
    """Where it was, after one finite gradient at the latest, and for ever, as with torch's."""
    module = network()
    optimizer = KINDS[name](module)
    for step in range(5):
        set_gradients(module, step)
        if step == 2:
            module[0].weight.grad[1, 2] = value
        optimizer.step()
        if step == 2 and (math.isnan(value) or "ign" not in name):  # the sign of inf is 1
            assert not module[0].weight[1, 2].isfinite()
    assert not module[0].weight[1, 2].isfinite()
    if name in PLAIN and "ign" in name:
        others = torch.ones(4, 3, dtype=torch.bool)
        others[1, 2] = False
        assert module[0].weight[others].isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_without_gradients_and_with_zeros_nothing_moves(name):
    module = network()
    optimizer = KINDS[name](module)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = weights(module)
    optimizer.step()
    assert_equal(module.parameters(), before)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_equal(module.parameters(), before)
    optimizer.zero_grad(set_to_none=False)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())
    optimizer.step()
    assert_equal(module.parameters(), before)


@pytest.mark.parametrize("name", KINDS)
def test_a_parameter_without_gradient_in_the_first_steps_joins_later(name):
    module = network()
    optimizer = KINDS[name](module)
    for step in range(4):
        set_gradients(module, step)
        if step < 2:
            module[0].weight.grad = module[1].bias.grad = None
        before = weights(module)
        optimizer.step()
        stay = name in PLAIN or name in ("tensor", "row", "column", "permuted within")
        if step < 2 and stay:
            assert torch.equal(module[0].weight, before[0])
            assert torch.equal(module[1].bias, before[3])
    assert all(p.isfinite().all() for p in module.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_a_closure_gives_the_step_that_its_gradients_give(name):
    module, other = network(), None
    other = copy.deepcopy(module)
    x = torch.randn(5, 3)
    losses = []

    def closure_of(net, optimizer):
        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            losses.append(loss.item())
            return loss

        return closure

    optimizer, twin = KINDS[name](module), KINDS[name](other)
    for _ in range(3):
        with torch.no_grad():
            assert optimizer.step(closure_of(module, optimizer)).item() == losses[-1]
        closure_of(other, twin)()
        assert twin.step() is None
    assert_equal(module.parameters(), other.parameters())
    assert not any(torch.is_tensor(p.grad) and p.grad.requires_grad for p in module.parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("name", KINDS)
def test_copies_have_the_same_state_and_step_alike(name, clone):
    module = network()
    optimizer = KINDS[name](module)
    set_gradients(module)
    optimizer.step()
    other, twin = clone((module, optimizer))
    ours, theirs = optimizer.state_dict(), twin.state_dict()
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert ours["param_groups"] == theirs["param_groups"]
    for each, stepped in ((module, optimizer), (other, twin)):
        set_gradients(each, 1)
        stepped.step()
        stepped.zero_grad()
    assert_equal(module.parameters(), other.parameters())
    assert type(optimizer).__name__ in repr(twin)


@pytest.mark.parametrize("name", KINDS)
def test_a_state_stays_as_it_was_saved_while_training_goes_on_from_it(name):
    module = network()
    optimizer = KINDS[name](module)
    set_gradients(module)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append(sorted(s)))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.load_state_dict(state)
    torch.testing.assert_close(state["state"], kept["state"], rtol=0, atol=0)
    assert state["param_groups"] == kept["param_groups"]
    assert optimizer.state_dict()["extra"] == 1
    assert seen == [["param_groups", "state"], "loaded", "before"]


@pytest.mark.parametrize("name", KINDS)
def test_a_state_is_loaded_again_and_by_a_copy(name):
    module = network()
    optimizer = KINDS[name](module)
    set_gradients(module)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for each in (optimizer, optimizer, copy.deepcopy(optimizer)):
        each.load_state_dict(copy.deepcopy(state))
        torch.testing.assert_close(each.state_dict()["state"], state["state"], rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_global_hooks_fire_once_a_step_and_see_this_optimizer(name):
    module = network()
    optimizer = KINDS[name](module)
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, *_: seen.append(("before", o))),
        register_optimizer_step_post_hook(lambda o, *_: seen.append(("after", o))),
    ]
    try:
        set_gradients(module)
        optimizer.step()
        assert seen == [("before", optimizer), ("after", optimizer)]
        seen.clear()
        optimizer.step(lambda: inner.step())  # another optimizer's step is one, too
        once = [("before", inner), ("after", inner)]
        assert seen == [("before", optimizer), *once, ("after", optimizer)]
    finally:
        for handle in handles:
            handle.remove()
    seen.clear()
    optimizer.step()
    assert not seen


def test_a_hook_of_the_inner_optimizers_own_is_called():
    module, seen = network(), []

    def factory(params):
        inner = torch.optim.Adam(params, lr=0.1)
        inner.register_step_post_hook(lambda o, *_: seen.append(type(o)))
        return inner

    optimizer = Reparameterized(module.parameters(), factory, Rotation())
    set_gradients(module)
    handle = register_optimizer_step_pre_hook(lambda o, *_: seen.append(type(o)))
    optimizer.step()
    handle.remove()
    assert seen == [Reparameterized, torch.optim.Adam]


def one_by_one(kind):
    def make(module, together):
        params = list(module.parameters())
        if together:
            return kind([{"params": params[:2]}, {"params": params[2:], "lr": 0.05}])
        optimizer = kind([{"params": params[:2]}])
        optimizer.add_param_group({"params": iter(params[2:]), "lr": 0.05})
        return optimizer

    return make


ADDED = {
    **{
        name: one_by_one(lambda p, name=name: BlockwiseAdam(p, lr=0.1, partition=name))
        for name in ("coordinate", "tensor", "global")
    },
    "Signum": one_by_one(lambda p: Signum(p, lr=0.1)),
    **{
        f"{type(each).__name__} of {kind.__name__}": one_by_one(
            lambda p, kind=kind, each=each: Reparameterized(p, lambda q: kind(q, lr=0.1), each)
        )
        for kind in (torch.optim.Adam, BlockwiseAdam, AdaSGD)
        for each in (Rotation(), Permutation(), Scaling(2.0))
    },
}


@pytest.mark.parametrize("name", ADDED)
def test_groups_that_are_added_are_as_if_they_had_been_given(name):
    module = network()
    other = copy.deepcopy(module)
    ours, theirs = ADDED[name](module, False), ADDED[name](other, True)
    assert ours.param_groups[1]["lr"] == 0.05
    for seed in range(3):
        for each, optimizer in ((module, ours), (other, theirs)):
            set_gradients(each, seed)
            optimizer.step()
    assert_equal(module.parameters(), other.parameters())
    states = [each.state_dict() for each in (ours, theirs)]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    ours.load_state_dict(copy.deepcopy(states[1]))


@pytest.mark.parametrize("name", ADDED)
def test_refused_groups_are_not_kept(name):
    module = network()
    optimizer = ADDED[name](module, False)
    set_gradients(module)
    optimizer.step()
    twin_module, twin = copy.deepcopy((module, optimizer))
    for group in (
        {"params": [next(module.parameters())]},
        {"params": [nn.Parameter(torch.ones(2))], "lr": -1.0},
        {"params": [("name", nn.Parameter(torch.ones(2)))]},
        {"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))], "betas": (0.9,)},
    ):
        is_torch = name.endswith("of Adam") and "lr" in group
        if not is_torch:  # which checks hyperparameters at the start only
            with pytest.raises((ValueError, TypeError)):
                optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 2
    for each, stepped in ((module, optimizer), (twin_module, twin)):
        set_gradients(each, 1)
        stepped.step()
    assert_equal(module.parameters(), twin_module.parameters())


@pytest.mark.parametrize("kind", [BlockwiseAdam, AdaSGD, Signum])
def test_parameters_are_taken_as_torch_takes_them(kind):
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    for given in ([p, q], (each for each in (p, q)), [("p", p), ("q", q)], [{"params": p}]):
        optimizer = kind(given)
        for each in optimizer.param_groups[0]["params"]:
            each.grad = torch.ones(2)
        optimizer.step()
    for wrong in (p, [[p]], [3], ["p"]):
        with pytest.raises(TypeError):
            kind(wrong)
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        kind([])
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        kind([2 * p])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kind([p, p])
    assert "duplicate parameters" in str(said[0].message)


def test_signum_takes_a_lazy_parameter_as_torch_does():
    layer = nn.LazyLinear(2)
    optimizer = Signum(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.1)
