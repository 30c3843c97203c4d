"""What a new optimizer knows after a swap, against the definitions of its moments."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, AdamW, NAdam, RMSprop

from lightning_linf import Partition
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.reparam import Rotation, Scaling
from lightning_linf.swap import carry_state
from lightning_linf.swap.groups import decay_note

ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # of float64
LR = 0.01


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()


def set_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def train(module, optimizer, num_steps, first=0):
    """Step along random gradients, the same for the same number ``first``."""
    for step in range(first, first + num_steps):
        set_gradients(module, step)
        optimizer.step()
    return weights(module)


def weights(module):
    return parameters_to_vector(module.parameters()).detach().clone()


def under(rotation, factory):
    return lambda p: Reparameterized(p, factory, rotation)


def swapped(make_old, make_new, num_steps=5, module=None):
    module = network() if module is None else module
    old = make_old(module.parameters())
    train(module, old, num_steps)
    new = make_new(module.parameters())
    sentence = carry_state(old, new)
    return module, old, new, sentence


def entries(optimizer):
    """State of every parameter, under the names that the inner optimizer has for it."""
    return {
        p: {name.removeprefix("phi."): value for name, value in state.items()}
        for p, state in optimizer.state.items()
    }


def mean_gradient(optimizer, key="exp_avg"):
    """Running mean of Adam and its like, corrected for its start at 0."""
    index = 0 if key == "exp_avg" else 1
    parts = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = entries(optimizer)[p]
            parts.append(
                (state[key] / (1 - group["betas"][index] ** float(state["step"]))).reshape(-1)
            )
    return torch.cat(parts)


KINDS = {
    "Adam": lambda p: Adam(p, lr=LR),
    "Adam with amsgrad": lambda p: Adam(p, lr=LR, amsgrad=True),
    "fused AdamW": lambda p: AdamW(p, lr=LR, fused=True),
    "SGD": lambda p: SGD(p, lr=LR, momentum=0.9),
    "Signum": lambda p: Signum(p, lr=LR),
    "BlockwiseAdam": lambda p: BlockwiseAdam(p, lr=LR, partition="tensor"),
    "AdaSGD": lambda p: AdaSGD(p, lr=LR),
    "RMSprop": lambda p: RMSprop(p, lr=LR, momentum=0.9, centered=True),
    "rotated Adam": under(Rotation("tensor"), lambda p: Adam(p, lr=LR)),
    "rotated AdaSGD": under(Rotation("global"), lambda p: AdaSGD(p, lr=LR)),
}


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("name", KINDS)
def test_one_of_the_same_kind_goes_on_with_the_same_bits(name, num_steps):
    module = network()
    old = KINDS[name](module.parameters())

    train(module, old, num_steps)
    kept_module, kept = copy.deepcopy((module, old))
    before = copy.deepcopy(old.state_dict())
    new = KINDS[name](module.parameters())
    assert carry_state(old, new) == "all of its state was carried over"
    assert torch.equal(train(module, new, 3, first=7), train(kept_module, kept, 3, first=7))
    torch.testing.assert_close(old.state_dict()["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Adam", lambda p: AdamW(p, lr=LR, weight_decay=0.0)),
        ("Adam", lambda p: BlockwiseAdam(p, lr=LR, partition="coordinate")),
        ("AdaSGD", lambda p: BlockwiseAdam(p, lr=LR, partition="global")),
    ],
)
def test_one_of_another_class_that_does_the_same_goes_on_alike(first, second, num_steps):
    module, old, new, _ = swapped(KINDS[first], second, num_steps)
    kept_module, kept = copy.deepcopy((module, old))
    torch.testing.assert_close(
        train(module, new, 5, first=7), train(kept_module, kept, 5, first=7), **ROUNDING
    )


def test_from_adam_to_adamw_moments_keep_their_bits():
    _, old, new, _ = swapped(KINDS["Adam"], lambda p: AdamW(p, lr=LR))
    for p, state in old.state.items():
        torch.testing.assert_close(new.state[p], state, rtol=0, atol=0)
        for key in ("exp_avg", "exp_avg_sq"):  # in memory of their own
            assert new.state[p][key].data_ptr() != state[key].data_ptr()


@pytest.mark.parametrize("num_steps", [1, 4, 100])
def test_other_betas_keep_the_means(num_steps):
    _, old, new, sentence = swapped(
        KINDS["Adam"], lambda p: Adam(p, lr=LR, betas=(0.5, 0.95)), num_steps
    )
    assert sentence == "momentum was carried over, and second moments"
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(mean_gradient(new, key), mean_gradient(old, key), **ROUNDING)


def test_amsgrad_starts_from_the_present_second_moments():
    module, _, new, _ = swapped(KINDS["Adam"], KINDS["Adam with amsgrad"])
    for state in new.state.values():
        assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])
        assert state["max_exp_avg_sq"] is not state["exp_avg_sq"]
    train(module, new, 1)


@pytest.mark.parametrize("name", ["coordinate", "row", "tensor", "global"])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_blocks_get_the_means_of_second_moments_and_give_them_back(name, num_steps):
    module = network()
    partition = Partition.of(module, name)
    module, adam, blockwise, sentence = swapped(
        KINDS["Adam"],
        lambda p: BlockwiseAdam(p, lr=LR, betas=(0.8, 0.99), partition=partition),
        num_steps,
        module,
    )
    assert sentence == "momentum was carried over, and second moments, as means over its blocks"
    torch.testing.assert_close(mean_gradient(blockwise), mean_gradient(adam), **ROUNDING)
    again = Adam(module.parameters(), lr=LR)
    carry_state(blockwise, again)
    torch.testing.assert_close(mean_gradient(again), mean_gradient(adam), **ROUNDING)
    squares = mean_gradient(adam, "exp_avg_sq")
    means = partition.block_sum(squares) / partition.sizes(squares)
    torch.testing.assert_close(
        mean_gradient(again, "exp_avg_sq"), partition.expand(means), **ROUNDING
    )


def test_one_block_may_span_groups():
    module = network()
    first, *rest = module.parameters()

    def groups():
        return [{"params": [first], "lr": 0.1}, {"params": rest}]

    old, new = Adam(groups(), lr=LR), AdaSGD(groups(), lr=LR)
    train(module, old, 3)
    carry_state(old, new)
    expected = torch.cat([s["exp_avg_sq"].reshape(-1) for s in old.state.values()]).mean()
    torch.testing.assert_close(new.state[first]["exp_avg_sq"], expected.view(1), **ROUNDING)
    assert new.state[first]["exp_avg_sq_step"] == 3


SGD_OPTIONS = [
    {"momentum": 0.9},
    {"momentum": 0.5, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
]


@pytest.mark.parametrize("options", SGD_OPTIONS)
def test_along_a_constant_gradient_sgd_steps_as_after_a_long_run(options):
    """There Adam's mean is the gradient, and SGD's sum the gradient times a number."""
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    long, old = SGD([p], lr=LR, **options), Adam([p], lr=LR)
    for _ in range(1000):
        long.step()
    for _ in range(2):
        old.step()
    for kind in (old, KINDS["Signum"]([p])):
        new = SGD([p], lr=LR, **options)
        if isinstance(kind, Signum):
            carry_state(long, kind)
            torch.testing.assert_close(kind.state[p]["exp_avg"], p.grad, **ROUNDING)
        assert carry_state(kind, new) == "momentum was carried over"
        sums = long.state[p]["momentum_buffer"]
        torch.testing.assert_close(new.state[p]["momentum_buffer"], sums, **ROUNDING)


def test_sgd_with_another_momentum_has_the_same_mean():
    _, old, new, sentence = swapped(KINDS["SGD"], lambda p: SGD(p, lr=LR, momentum=0.5))
    assert sentence == "momentum was carried over"
    for p, state in old.state.items():
        torch.testing.assert_close(
            new.state[p]["momentum_buffer"], 0.2 * state["momentum_buffer"], **ROUNDING
        )


ROTATED_LAWS = {
    "SGD": (KINDS["SGD"], [None, Rotation("global"), Rotation("row", seed=1), None]),
    "AdaSGD": (KINDS["AdaSGD"], [None, Rotation("global"), Rotation("tensor", seed=1), None]),
    "BlockwiseAdam": (
        KINDS["BlockwiseAdam"],
        [None, Rotation("tensor"), Rotation("tensor", seed=1)],
    ),
}


@pytest.mark.parametrize("name", ROTATED_LAWS)
def test_what_no_rotation_changes_goes_on_through_swaps_of_coordinates(name):
    factory, rotations = ROTATED_LAWS[name]
    module = network()
    other = copy.deepcopy(module)
    plain = factory(other.parameters())
    optimizer = None
    for i, rotation in enumerate(rotations):
        old = optimizer
        make = factory if rotation is None else under(rotation, factory)
        optimizer = make(module.parameters())
        if old is not None:
            carry_state(old, optimizer)
        train(module, optimizer, 3, first=3 * i)
        train(other, plain, 3, first=3 * i)
    torch.testing.assert_close(weights(module), weights(other), rtol=1e-10, atol=1e-12)


def rotated_second_moments(rotation, module, adam):
    bound = rotation.bind([p.shape for p in module.parameters()])
    return bound.apply_transpose_squared(mean_gradient(adam, "exp_avg_sq"))


@pytest.mark.parametrize("scope", ["global", "tensor", "row", "column"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_new_coordinates_get_exact_momentum_and_expected_second_moments(scope, betas):
    rotation = Rotation(scope, seed=2)
    module, adam, rotated, sentence = swapped(
        KINDS["Adam"], under(rotation, lambda p: Adam(p, lr=LR, betas=betas))
    )
    assert sentence == (
        "momentum was carried over, and second moments, as their expectation in its coordinates"
    )
    bound = rotation.bind([p.shape for p in module.parameters()])
    torch.testing.assert_close(
        mean_gradient(rotated), bound.apply_transpose(mean_gradient(adam)), **ROUNDING
    )
    squares = mean_gradient(rotated, "exp_avg_sq")
    torch.testing.assert_close(squares, rotated_second_moments(rotation, module, adam), **ROUNDING)
    assert (squares > 0).all()
    torch.testing.assert_close(squares.sum(), mean_gradient(adam, "exp_avg_sq").sum(), **ROUNDING)

    again = Adam(module.parameters(), lr=LR)
    carry_state(rotated, again)
    torch.testing.assert_close(mean_gradient(again), mean_gradient(adam), **ROUNDING)
    torch.testing.assert_close(
        mean_gradient(again, "exp_avg_sq"),
        bound.inverse().apply_transpose_squared(squares),
        **ROUNDING,
    )


@pytest.mark.parametrize("through_others", [False, True])
def test_new_units_scale_momentum_and_second_moments(through_others):
    factors = torch.rand(29, dtype=torch.float64) + 0.5
    module, old, new, _ = swapped(KINDS["Adam"], under(Scaling(factors), KINDS["Adam"]))
    means, squares = mean_gradient(old), mean_gradient(old, "exp_avg_sq")
    if through_others:  # which look alike when printed
        other = under(Scaling(factors.flip(0)), KINDS["Adam"])(module.parameters())
        carry_state(new, other)
        new = under(Scaling(factors), KINDS["Adam"])(module.parameters())
        carry_state(other, new)
        torch.testing.assert_close(mean_gradient(other), factors.flip(0) * means, **ROUNDING)
    torch.testing.assert_close(mean_gradient(new), factors * means, **ROUNDING)
    torch.testing.assert_close(
        mean_gradient(new, "exp_avg_sq"), factors.square() * squares, **ROUNDING
    )
    again = Adam(module.parameters(), lr=LR)
    carry_state(new, again)
    torch.testing.assert_close(mean_gradient(again), means, **ROUNDING)
    torch.testing.assert_close(mean_gradient(again, "exp_avg_sq"), squares, **ROUNDING)


def test_freezing_changes_a_map_of_the_same_name():
    module = network()
    optimizer = under(Rotation(), lambda p: SGD(p, lr=LR, momentum=0.9))
    old = optimizer(module.parameters())
    train(module, old, 3)
    mean = dict(old.to_theta({p: s["momentum_buffer"] for p, s in entries(old).items()}))
    frozen, *rest = module.parameters()
    frozen.requires_grad_(False)
    new = optimizer(module.parameters())
    assert carry_state(old, new) == "momentum was carried over"
    now = new.to_theta({p: s["momentum_buffer"] for p, s in entries(new).items()})
    for p in rest:
        torch.testing.assert_close(now[p], mean[p], **ROUNDING)


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_parameters_without_a_state_start_anew_unless_the_map_mixes_them(scope):
    module = network()
    adam = Adam(module.parameters(), lr=LR)
    first, *_ = module.parameters()
    for step in range(3):
        set_gradients(module, step)
        first.grad = None
        adam.step()
    rotated = under(Rotation(scope), lambda p: Adam(p, lr=LR))(module.parameters())
    carry_state(adam, rotated)
    assert (first in rotated.state) == (scope == "global")
    assert all(state["step"] == 3 for state in entries(rotated).values())
    again = Adam(module.parameters(), lr=LR)
    carry_state(rotated, again)
    for p, state in adam.state.items():
        torch.testing.assert_close(again.state[p]["exp_avg"], state["exp_avg"], **ROUNDING)
    assert torch.isfinite(train(module, again, 3)).all()


def test_second_moments_of_a_block_are_saved_although_their_holder_had_no_gradient():
    module = network()
    adam = Adam(module.parameters(), lr=LR)
    set_gradients(module, 0)
    next(module.parameters()).grad = None
    adam.step()
    new = under(Rotation("tensor"), lambda p: AdaSGD(p, lr=LR))(module.parameters())
    carry_state(adam, new)
    saved = new.state_dict()["state"]
    expected = torch.cat([s["exp_avg_sq"].reshape(-1) for s in adam.state.values()]).mean()
    torch.testing.assert_close(saved[0]["phi.exp_avg_sq"], expected.view(1), **ROUNDING)


def test_low_precision_moments_become_float32_in_other_coordinates():
    module = network().bfloat16()
    _, old, new, _ = swapped(KINDS["Adam"], KINDS["rotated Adam"], module=module)
    assert {s["exp_avg"].dtype for s in old.state.values()} == {torch.bfloat16}
    assert {s["exp_avg_sq"].dtype for s in entries(new).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("make_old", "make_new", "expected"),
    [
        (KINDS["SGD"], KINDS["Signum"], "momentum was carried over"),
        (KINDS["Adam"], KINDS["SGD"], "momentum was carried over"),
        (lambda p: NAdam(p), KINDS["Adam"], "momentum was carried over, and second moments"),
        (KINDS["SGD"], KINDS["Adam"], "its state starts anew: it needs second moments, which"),
        (KINDS["Signum"], KINDS["AdaSGD"], "its state starts anew: it needs second moments, which"),
        (KINDS["SGD"], KINDS["rotated Adam"], "its state starts anew: it needs second moments"),
        (KINDS["Adam"], lambda p: SGD(p, lr=LR), "its state starts anew"),
        (KINDS["Adam"], KINDS["RMSprop"], "its state starts anew"),
        (KINDS["RMSprop"], KINDS["SGD"], "its state starts anew"),  # of preconditioned gradients
        (lambda p: SGD(p, lr=LR, momentum=1.0), KINDS["Signum"], "its state starts anew"),
        (
            lambda p: SGD(p, lr=LR, momentum=0.9, dampening=1.0),
            KINDS["Signum"],
            "its state starts anew",
        ),
        (lambda p: SGD(p, lr=LR), KINDS["Adam"], "it has no state yet"),
    ],
)
def test_the_sentence_tells_what_was_carried(make_old, make_new, expected):
    module, _, new, sentence = swapped(make_old, make_new)
    assert sentence.startswith(expected)
    assert bool(new.state) == ("was carried over" in sentence)
    assert torch.isfinite(train(module, new, 3)).all()


class SignSGD(torch.optim.Optimizer):
    """What a user may write: it says itself what it keeps."""

    decoupled_weight_decay = True
    carried_state = ("exp_avg",)

    def __init__(self, params, lr=LR, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})


@pytest.mark.parametrize("make_old", [KINDS["Signum"], KINDS["rotated Adam"], KINDS["SGD"]])
def test_a_class_that_names_its_state_gets_the_same_mean_as_signum(make_old):
    _, old, new, sentence = swapped(make_old, SignSGD)
    assert sentence.startswith("momentum was carried over")
    expected = KINDS["Signum"]([p for group in old.param_groups for p in group["params"]])
    carry_state(old, expected)
    ours, theirs = (list(each.state.values()) for each in (new, expected))
    for mine, state in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, dict(state), rtol=0, atol=0)
    assert decay_note(old, new).endswith("decoupled now, no longer a part of the gradient") != (
        isinstance(old, Signum)
    )


class Adan(Adam):
    """Keeps squares of something else with its second beta."""

    def __init__(self, params, betas=(0.9, 0.99)):
        super().__init__(params, lr=LR, betas=betas)
        for group in self.param_groups:
            group["betas"] = (*betas, 0.999)

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            for key in ("exp_avg", "exp_avg_sq"):
                self.state[p].setdefault(key, torch.ones_like(p)).lerp_(p.grad.square(), 0.1)
            self.state[p]["step"] = self.state[p].get("step", 0) + torch.ones(())


def test_means_of_an_optimizer_with_three_betas_go_on_in_its_own_kind_only():
    _, old, new, sentence = swapped(Adan, Adan)
    assert sentence == "all of its state was carried over"
    torch.testing.assert_close(list(new.state.values()), list(old.state.values()), rtol=0, atol=0)
    for first, second in ((Adan, KINDS["Adam"]), (Adan, KINDS["SGD"]), (KINDS["Adam"], Adan)):
        _, _, new, sentence = swapped(first, second)
        assert sentence == "its state starts anew"
        assert not new.state


def test_moments_of_a_first_step_that_loss_scaling_undid_are_none():
    module = network()
    old = Adam(module.parameters(), lr=LR)
    train(module, old, 1)
    for state in old.state.values():  # as fused Adam leaves it
        for value in state.values():
            value.zero_()
    assert carry_state(old, SGD(module.parameters(), lr=LR, momentum=0.9)) == (
        "its state starts anew"
    )


def test_the_step_after_a_swap_is_that_computed_by_hand():
    """On the quadratic 1/2 (x^2 + 4 y^2), from Adam to one second moment for both."""
    p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    h = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def step(optimizer):
        p.grad = h * p.detach()
        optimizer.step()

    m = v = torch.zeros(2, dtype=torch.float64)
    adam = Adam([p], lr=0.1, eps=0.0)
    for _ in range(3):
        g = h * p.detach()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.square()
        step(adam)
    new = BlockwiseAdam([p], lr=0.1, betas=(0.8, 0.99), eps=0.0)
    carry_state(adam, new)
    g, before = h * p.detach(), p.detach().clone()
    step(new)
    mean, square = m / (1 - 0.9**3), v.mean() / (1 - 0.999**3)
    m = 0.8 * (1 - 0.8**3) * mean + 0.2 * g
    v = 0.99 * (1 - 0.99**3) * square + 0.01 * g.square().mean()
    move = 0.1 * (m / (1 - 0.8**4)) / (v / (1 - 0.99**4)).sqrt()
    torch.testing.assert_close(p.detach(), before - move, **ROUNDING)
