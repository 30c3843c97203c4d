"""States that are loaded: checked before anything is changed, and taken as torch takes them."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lightning_linf import Partition, Rotation
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.reparam import Permutation


def rotated(factory, reparameterization=None):
    reparameterization = reparameterization or Rotation(seed=0)
    return lambda params: Reparameterized(params, factory, reparameterization)


def torch_kinds():
    adam = {"lr": 0.01, "amsgrad": True}
    return {
        "Adam": lambda p: torch.optim.Adam(p, **adam),
        "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
        "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
        "Adadelta": torch.optim.Adadelta,
        "Adamax": torch.optim.Adamax,
        "NAdam": torch.optim.NAdam,
        "RAdam": torch.optim.RAdam,
        "ASGD": torch.optim.ASGD,
        "Rprop": torch.optim.Rprop,
    }


OURS = {
    "by coordinate": lambda p: BlockwiseAdam(p, lr=0.01, partition="coordinate"),
    "by tensor": lambda p: BlockwiseAdam(p, lr=0.01),
    "global": lambda p: BlockwiseAdam(p, lr=0.01, partition="global"),
    "AdaSGD": lambda p: AdaSGD(p, lr=0.01),
    "Signum": lambda p: Signum(p, lr=0.01),
}
KINDS = {
    **OURS,
    **{f"rotated {name}": rotated(kind) for name, kind in torch_kinds().items()},
    **{f"rotated {name}": rotated(kind) for name, kind in OURS.items()},
    "permuted Adam": rotated(torch_kinds()["Adam"], Permutation("tensor")),
}


def parameters(*shapes, dtype=torch.float32):
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def step(params, optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    optimizer.step()


def everything(optimizer):
    """What an optimizer is, by value, its inner one included."""
    inner = getattr(optimizer, "inner", optimizer)
    return copy.deepcopy(
        [(each.state_dict(), list(each.state.values())) for each in (optimizer, inner)]
    )


def assert_same(first, second):
    if isinstance(first, dict):
        assert list(first) == list(second)
        assert_same(list(first.values()), list(second.values()))
    elif isinstance(first, (list, tuple)):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    else:
        assert first == second


def assert_refused(optimizer, state, message, params):
    """And the optimizer is as it was, and goes on as a copy that has not seen the state."""
    twin_params, twin = copy.deepcopy((params, optimizer))
    before, given = everything(optimizer), copy.deepcopy(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert_same(everything(optimizer), before)
    assert_same(state, given)
    for seed in (5, 6):
        step(params, optimizer, seed)
        step(twin_params, twin, seed)
    for p, q in zip(params, twin_params, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_state_of_another_order_is_refused_with_both_shapes_and_the_place(name, stepped):
    shapes = (3, 2), (2,), (3, 2)
    saved = parameters(*shapes)
    optimizer = KINDS[name](saved)
    step(saved, optimizer)
    params = parameters(*shapes[1:], shapes[0])
    other = KINDS[name](params)
    if stepped:
        step(params, other, 1)
    message = r"load_state_dict: expected `\w+` of shape \(2,\) for parameter 0 of shape \(2,\), "
    assert_refused(other, optimizer.state_dict(), message + r"got \(3, 2\)", params)


@pytest.mark.parametrize("name", KINDS)
def test_every_part_of_a_state_is_checked(name):
    params = parameters((3, 2), (2,))
    optimizer = KINDS[name](params)
    step(params, optimizer)
    parts = [(index, key) for index, s in optimizer.state_dict()["state"].items() for key in s]
    for index, key in parts:
        state = copy.deepcopy(optimizer.state_dict())
        value = state["state"][index][key]
        if not isinstance(value, torch.Tensor):
            continue
        state["state"][index][key] = torch.zeros(*value.shape, 2)
        assert_refused(optimizer, state, r"load_state_dict: expected .*parameter \d", params)


def test_names_tell_an_order_that_shapes_do_not():
    params = parameters((2,), (2,))
    for kind in (OURS["by tensor"], OURS["Signum"], KINDS["rotated Adam"]):
        a, b = params
        optimizer = kind([("a", a), ("net.b", b)])
        step(params, optimizer)
        state = kind([("module.net.b", b), ("module.a", a)]).state_dict()
        assert_refused(optimizer, state, "expected a as parameter 0, got net.b", params)
        renamed = kind([("x", a), ("y", b)]).state_dict()
        optimizer.load_state_dict(renamed)  # in its order, as torch does
        assert optimizer.param_groups[0]["param_names"] == ["a", "net.b"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.module."])
@pytest.mark.parametrize("partition", ["row", "tensor", "global"])
@pytest.mark.parametrize("is_rotated", [False, True])
def test_a_wrappers_prefix_does_not_matter(prefix, partition, is_rotated):
    inner = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    wrapper = nn.Module()
    wrapper.add_module(prefix.split(".")[0], inner)
    if prefix.count(".") == 2:
        wrapper._fsdp_wrapped_module = nn.Module()
        wrapper._fsdp_wrapped_module.module = inner
    assert all(name.startswith(prefix) for name, _ in wrapper.named_parameters())
    params = list(inner.parameters())

    def make(module):
        def factory(named):
            return BlockwiseAdam(named, partition=Partition.of(module, partition))

        named = module.named_parameters()
        return Reparameterized(named, factory, Rotation("row")) if is_rotated else factory(named)

    for first, second in itertools.permutations((wrapper, inner)):
        source, target = make(first), make(second)
        step(params, source)
        target.load_state_dict(source.state_dict())
        names = [name for name, _ in second.named_parameters()]
        assert target.param_groups[0]["param_names"] == names
        ours, theirs = (each.state_dict()["state"] for each in (target, source))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        step(params, target)


def without_options(state):
    for group in state["param_groups"]:
        for key in ("foreach", "maximize", "capturable"):
            group.pop(key, None)


def with_numbers(state):
    for entry in state["state"].values():
        entry.update({key: v.item() for key, v in entry.items() if key.endswith("step")})


def with_narrow_counts(state):
    for entry in state["state"].values():
        entry.update({key: v.bfloat16() for key, v in entry.items() if key.endswith("step")})


@pytest.mark.parametrize("change", [without_options, with_numbers, with_narrow_counts])
@pytest.mark.parametrize("name", [*OURS, *(f"rotated {name}" for name in OURS), "rotated Adam"])
def test_older_states_go_on_with_the_same_bits(name, change):
    params = parameters((3, 2), (2,))
    optimizer = KINDS[name](params)
    step(params, optimizer)
    others = copy.deepcopy(params)
    loaded = KINDS[name](others)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    loaded.load_state_dict(state)
    for seed in (1, 2):
        step(params, optimizer, seed)
        step(others, loaded, seed)
        for p, q in zip(params, others, strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("name", KINDS)
def test_a_module_may_be_cast_between_its_optimizer_and_the_state(name):
    """As Fabric's ``setup`` does."""
    params = parameters((3, 2), (2,), dtype=torch.float64)
    optimizer = KINDS[name](params)
    step(params, optimizer)
    module = nn.ParameterList(parameters((3, 2), (2,)))
    loaded = KINDS[name](module.parameters())
    module.double()
    for p, q in zip(module, params, strict=True):
        p.data.copy_(q)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(params, optimizer, seed)
        step(list(module), loaded, seed)
        for p, q in zip(module, params, strict=True):
            assert p.dtype == torch.float64
            # torch keeps a product of NAdam's in float32, and once loaded in the dtype of p.
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KINDS)
def test_a_module_may_be_moved_between_its_optimizer_and_the_state(name):
    params = parameters((3, 2), (2,))
    optimizer = KINDS[name](params)
    step(params, optimizer)
    module = nn.ParameterList(copy.deepcopy(params))
    loaded = KINDS[name](module.parameters())
    module.cuda()
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(params, optimizer, seed)
        generator = torch.Generator().manual_seed(seed)
        for p in module:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        loaded.step()
    for p, q in zip(module, params, strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-4, atol=1e-6)


def refuse(optimizer, *_):
    raise ValueError("not today")


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("name", ["by tensor", "Signum", "rotated Adam", "rotated AdaSGD"])
def test_a_hook_that_refuses_a_state_leaves_the_optimizer_as_it_was(name, when):
    params = parameters((3, 2), (2,))
    optimizer = KINDS[name](params)
    step(params, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    step(params, optimizer, 1)
    optimizer.param_groups[0]["lr"] = 0.5
    getattr(optimizer, f"register_load_state_dict_{when}_hook")(refuse)
    assert_refused(optimizer, state, "not today", params)


def groups_of(state, **options):
    return {**state, "param_groups": [{**group, **options} for group in state["param_groups"]]}


@pytest.mark.parametrize(
    "name", ["by tensor", "AdaSGD", "Signum", "rotated Adam", "rotated AdaSGD"]
)
def test_other_groups_and_betas_are_refused(name):
    params = parameters((3, 2), (2,))
    optimizer = KINDS[name](params)
    step(params, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    for groups, message in (
        (state["param_groups"] * 2, "different number of parameter groups"),
        (groups_of(state, params=[0])["param_groups"], "doesn't match the size"),
    ):
        assert_refused(optimizer, {**state, "param_groups": groups}, message, params)
    if name in ("by tensor", "AdaSGD", "rotated AdaSGD"):
        three = groups_of(state, betas=(0.9, 0.99, 0.999))
        assert_refused(optimizer, three, "expected two `betas`, got", params)


@pytest.mark.parametrize("foreign", [torch.optim.AdamW, torch.optim.SGD, BlockwiseAdam])
def test_signum_refuses_the_state_of_another_class(foreign):
    params = parameters((3,))
    other = foreign(params, lr=0.1)
    optimizer = Signum(params)
    step(params, other)
    if foreign is torch.optim.SGD:
        other = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        step(params, other)
        message = r"expected `exp_avg` of shape \(3,\) .* got NoneType"
    else:
        message = "state of an optimizer of this class, got one without momentum"
    assert_refused(optimizer, other.state_dict(), message, params)


def test_second_moments_without_their_count_are_refused():
    params = parameters((3,))
    optimizer = BlockwiseAdam(params)
    step(params, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    del state["state"][0]["exp_avg_sq_step"]
    assert_refused(optimizer, state, r"exp_avg_sq of shape \(1,\) and its count", params)


def without_momentum(entry):
    del entry["exp_avg"]


def sparse(entry):
    entry["exp_avg"] = entry["exp_avg"].to_sparse()


def words_for_counts(entry):
    entry["step"] = "three"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_momentum, r"`exp_avg` of shape \(3, 2\) .*got NoneType"),
        (sparse, r"`exp_avg` of shape \(3, 2\) .*got a tensor of layout torch\.sparse_coo"),
        (words_for_counts, r"`step` of shape \(\) .*got str"),
    ],
)
@pytest.mark.parametrize("partition", ["coordinate", "tensor"])
def test_odd_parts_of_a_state_are_refused(partition, change, message):
    params = parameters((3, 2))
    optimizer = BlockwiseAdam(params, partition=partition)
    step(params, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    change(state["state"][0])
    assert_refused(optimizer, state, message, params)


class Memory(torch.optim.Optimizer):
    """Not one of torch's: keeps the last gradient, and its mean over rows."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["last"] = p.grad.clone()
            self.state[p]["means"] = p.grad.mean(0)
            p.sub_(0.1 * p.grad)


class Remembering(torch.optim.SGD):
    """Keeps more than torch's own."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["norms"] = torch.ones(3)


def test_subclasses_may_keep_what_they_like():
    params = parameters((3, 2), (2,))
    optimizer = rotated(lambda p: Remembering(p, lr=0.1, momentum=0.9))(params)
    step(params, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    assert any("norms" in key for key in saved["state"][0])
    optimizer.load_state_dict(copy.deepcopy(saved))
    torch.testing.assert_close(optimizer.state_dict()["state"], saved["state"], rtol=0, atol=0)
    step(params, optimizer)


def test_of_an_unknown_inner_optimizer_the_order_of_shapes_is_compared():
    shapes = (3, 2), (2,), (4,)
    saved, params = parameters(*shapes), parameters(*shapes[::-1])
    optimizer = rotated(Memory)(saved)
    step(saved, optimizer)
    other = rotated(Memory)(params)
    assert_refused(other, optimizer.state_dict(), r"`last` of shape \(4,\) .*got \(3, 2\)", params)
    again = rotated(Memory)(saved)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[saved[0]]["phi.means"].shape == (2,)


def test_histories_of_lbfgs_have_an_entry_for_every_parameter():
    def make(params):
        return Reparameterized(params, lambda p: torch.optim.LBFGS(p, max_iter=2), Rotation())

    def descend(params, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params)
            loss.backward()
            return loss

        optimizer.step(closure)

    saved, params = parameters((3, 2), (2,)), parameters((3,), (2,))
    optimizer, other = make(saved), make(params)
    descend(saved, optimizer)
    with pytest.raises(ValueError, match=r"expected `\w+` of shape \(5,\) .*got \(8,\)"):
        other.load_state_dict(optimizer.state_dict())
    make(saved).load_state_dict(optimizer.state_dict())


def test_the_fused_kernel_gets_no_momentum_of_another_shape():
    params = parameters((3,))
    optimizer = BlockwiseAdam(params)
    step(params, optimizer)
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(2)  # by hand
    with pytest.raises(RuntimeError, match=r"size of tensor|shape"):
        step(params, optimizer)
