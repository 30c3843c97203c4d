"""Optimizers in other coordinates: their laws, against dense maps, and as torch's behave."""

import copy
import io
import pickle
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import networks
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import lr_scheduler

from lightning_linf import Partition
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized
from lightning_linf.probe import Landscape
from lightning_linf.reparam import (
    BoundReparameterization,
    Permutation,
    Reparameterization,
    Rotation,
    Scaling,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # float64 after 50 steps, each of which rounds
SCOPES = ["global", "tensor", "row", "column"]


@dataclass(frozen=True)
class BoundDense(BoundReparameterization):
    """Any matrix: its transpose is not its inverse."""

    matrix: torch.Tensor

    @property
    def num_params(self):
        return len(self.matrix)

    def inverse(self):
        return BoundDense(torch.linalg.inv(self.matrix))

    def _multiply(self, vector):
        return self.matrix.to(vector) @ vector

    def _multiply_transpose(self, vector):
        return self.matrix.to(vector).T @ vector

    def _multiply_transpose_squared(self, vector):
        return self.matrix.to(vector).T.square() @ vector


@dataclass(frozen=True)
class Dense(Reparameterization):
    seed: int = 0
    only: str | None = None

    def _bind(self, shapes, stream):
        size = sum(shape.numel() for shape in shapes)
        generator = torch.Generator().manual_seed(self.seed + 7 * stream)
        noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return BoundDense(torch.eye(size, dtype=torch.float64) + 0.3 * noise / size**0.5)


def dense(linear_map, size):
    """Its matrix, from its products with unit vectors."""
    return torch.stack([linear_map.apply(row) for row in torch.eye(size).double()], dim=1)


def weights(module):
    return parameters_to_vector(module.parameters()).detach().clone()


def two(seed=0):
    """Twice the same network, with its batch and loss."""
    torch.manual_seed(seed)
    module, batch, loss = networks.random_mlp(seed)
    return module, copy.deepcopy(module), lambda m: loss(m, batch)


def backward(module, loss):
    module.zero_grad()
    value = loss(module)
    value.backward()
    return value


def train(module, optimizer, loss, num_steps=50):
    for _ in range(num_steps):
        backward(module, loss)
        optimizer.step()
    return weights(module)


def grouped(module, num_groups):
    """Named parameters dealt to groups that differ in learning rate and weight decay."""
    named = list(module.named_parameters())
    return [
        {
            "params": named[i::num_groups],
            "lr": 0.01 / (i + 1),
            **({"weight_decay": 0.1 * i} if num_groups > 1 else {}),
        }
        for i in range(num_groups)
    ]


def rotated_adam(module, reparameterization=None, **options):
    return Reparameterized(
        module.parameters(),
        lambda p: torch.optim.Adam(p, **{"lr": 0.01, **options}),
        reparameterization or Rotation(seed=0),
    )


@cache
def keeps_rounding_small(seed):
    """Whether SGD from a start off by rounding ends there, too; one network in 150 does not."""
    module, nudged, loss = two(seed)
    with torch.no_grad():
        for p in nudged.parameters():
            p.mul_(1 + 1e-15)
    ends = [train(m, torch.optim.SGD(m.parameters(), lr=0.01), loss) for m in (module, nudged)]
    return bool((ends[0] - ends[1]).abs().max() < 1e-13)


SEEDS = st.integers(0, 1000).filter(keeps_rounding_small)
SGD_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
]
ROTATED_SGD = {
    "seed": SEEDS,
    "scope": st.sampled_from(SCOPES),
    "num_groups": st.integers(1, 3),
    "only": st.sampled_from([None, "weight", r"^0\."]),
    "strength": st.sampled_from([0.3, 1.0]),
    "options": st.sampled_from(SGD_OPTIONS),
}


def check_rotated_sgd(seed, scope, num_groups, only, strength, options):
    module, other, loss = two(seed)
    rotation = Rotation(scope, seed=seed, strength=strength, only=only)
    plain = torch.optim.SGD(grouped(module, num_groups), **options)
    rotated = Reparameterized(
        grouped(other, num_groups), lambda p: torch.optim.SGD(p, **options), rotation
    )
    torch.testing.assert_close(
        train(other, rotated, loss), train(module, plain, loss), **CLOSE, msg=str(rotation)
    )


@settings(max_examples=8, deadline=None)
@given(**ROTATED_SGD)
def test_rotated_sgd_follows_sgd(**choice):
    check_rotated_sgd(**choice)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(**ROTATED_SGD)
def test_rotated_sgd_follows_sgd_in_many_cases(**choice):
    check_rotated_sgd(**choice)


@pytest.mark.parametrize("scope", SCOPES)
def test_rotated_adam_does_not_follow_adam(scope):
    module, other, loss = two()
    expected = train(module, torch.optim.Adam(module.parameters(), lr=0.01), loss, 20)
    rotated = train(other, rotated_adam(other, Rotation(scope)), loss, 20)
    assert (rotated - expected).abs().max() > 0.01


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_scaled_adam_is_adam_with_a_learning_rate_for_each_coordinate(seed):
    module, other, loss = two(seed)
    factors = torch.rand(len(weights(module))).double() + 0.5
    optimizer = rotated_adam(other, Scaling(factors), eps=0.0)
    beta1, beta2, m, v = 0.9, 0.999, 0.0, 0.0
    for step in range(1, 51):
        backward(module, loss)
        g = parameters_to_vector(p.grad for p in module.parameters())
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.square()
        moves = (m / (1 - beta1**step)) / (v / (1 - beta2**step)).sqrt()
        nn.utils.vector_to_parameters(weights(module) - 0.01 * factors * moves, module.parameters())
    # Adam divides gradients by their size, so it feels rounding in the smallest of them
    torch.testing.assert_close(train(other, optimizer, loss), weights(module), rtol=1e-7, atol=1e-7)


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_scaled_sgd_is_sgd_with_the_squares_as_learning_rates(seed):
    module, other, loss = two(seed)
    factors = torch.rand(len(weights(module))).double() + 0.5
    optimizer = Reparameterized(
        other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Scaling(factors)
    )
    for _ in range(50):
        backward(module, loss)
        g = parameters_to_vector(p.grad for p in module.parameters())
        nn.utils.vector_to_parameters(
            weights(module) - 0.01 * factors.square() * g, module.parameters()
        )
    torch.testing.assert_close(train(other, optimizer, loss), weights(module), **CLOSE)


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_permutations_change_nothing(name, scope):
    module, other, loss = two()
    kind = getattr(torch.optim, name)
    permuted = Reparameterized(
        other.parameters(), lambda p: kind(p, lr=0.01), Permutation(scope, seed=3)
    )
    expected = train(module, kind(module.parameters(), lr=0.01), loss)
    torch.testing.assert_close(train(other, permuted, loss), expected, **CLOSE)


def test_a_map_after_its_inverse_changes_nothing():
    module, other, loss = two()
    optimizer = rotated_adam(other, Scaling(3.0) @ Scaling(1 / 3.0))
    expected = train(module, torch.optim.Adam(module.parameters(), lr=0.01), loss)
    torch.testing.assert_close(train(other, optimizer, loss), expected, rtol=1e-8, atol=1e-8)


def test_parts_of_a_composition_may_change_different_groups():
    module, other, loss = two()
    parts = Rotation(only="weight") @ Rotation("tensor", only="bias")
    names = ["weight", "bias"]
    groups = [
        {"params": [(n, p) for n, p in other.named_parameters() if name in n]} for name in names
    ]
    optimizer = Reparameterized(groups, lambda p: torch.optim.SGD(p, lr=0.01), parts)
    expected = train(module, torch.optim.SGD(module.parameters(), lr=0.01), loss)
    torch.testing.assert_close(train(other, optimizer, loss), expected, **CLOSE)


def test_weights_and_loss_are_the_same_to_the_last_bit_before_the_first_step():
    module, other, loss = two()
    optimizer = rotated_adam(other)
    assert torch.equal(weights(other), weights(module))
    assert torch.equal(backward(other, loss), backward(module, loss))
    optimizer.zero_grad()
    optimizer.step()  # without gradients
    assert torch.equal(weights(other), weights(module))


@pytest.mark.parametrize("name", ["strength 0", "only a frozen one"])
def test_where_nothing_is_mapped_bits_are_those_of_the_plain_optimizer(name):
    module, other, loss = two()
    for each in (module, other):
        each[0].weight.requires_grad_(name == "strength 0")
    rotation = Rotation(strength=0.0) if name == "strength 0" else Rotation(only=r"^0.weight")
    optimizer = Reparameterized(
        other.named_parameters(), lambda p: torch.optim.Adam(p, lr=0.01), rotation
    )
    expected = train(module, torch.optim.Adam(module.parameters(), lr=0.01), loss)
    assert torch.equal(train(other, optimizer, loss), expected)


def test_what_the_map_leaves_out_steps_with_the_same_bits():
    module, other, loss = two()
    optimizer = Reparameterized(
        other.named_parameters(), lambda p: torch.optim.Adam(p, lr=0.01), Rotation(only=r"^0\.")
    )
    train(module, torch.optim.Adam(module.parameters(), lr=0.01), loss, 1)
    train(other, optimizer, loss, 1)
    same = [torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True)]
    assert same == [not name.startswith("0.") for name, _ in module.named_parameters()]


@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_blockwise_adam_does_not_notice_rotations_within_its_blocks(scope):
    module, other, loss = two()

    def factory(params):
        if scope == "global":
            return AdaSGD(params, lr=0.01)
        return BlockwiseAdam(params, lr=0.01, partition=Partition.of(module, scope))

    rotation = Rotation(scope, seed=2)
    groups = [{"params": list(other.named_parameters())[::-1]}]  # found by their names
    optimizer = Reparameterized(groups, factory, rotation)
    expected = train(module, factory(module.named_parameters()), loss)
    torch.testing.assert_close(train(other, optimizer, loss), expected, rtol=1e-8, atol=1e-8)


def test_groups_have_maps_of_their_own():
    first, second = (nn.Parameter(torch.zeros(16)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "lr": 0.1}]
    optimizer = Reparameterized(groups, lambda p: torch.optim.Adam(p, lr=0.1), Rotation())
    first.grad = second.grad = torch.arange(16.0)
    optimizer.step()
    assert (first - second).abs().max() > 0.01


OPTIMIZERS = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adadelta": {"lr": 0.5},
    "Adamax": {"lr": 0.01},
    "ASGD": {"lr": 0.01},
    "Rprop": {"lr": 0.001},
    "LBFGS": {"lr": 0.1, "max_iter": 4},
    "LBFGS by line search": {"max_iter": 5, "line_search_fn": "strong_wolfe"},
}
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


@pytest.mark.parametrize("reparameterization", [Rotation(seed=0), Dense()], ids=["rotation", "any"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, None) for name in OPTIMIZERS),
        *((name, "foreach") for name in OPTIMIZERS if "LBFGS" not in name),
        *((name, "fused") for name in FUSED),
    ],
)
def test_every_optimizer_of_torch_runs_as_on_dense_coordinates(name, how, reparameterization):
    module, other, loss = two()
    kind = getattr(torch.optim, name.split()[0])
    options = {**OPTIMIZERS[name], **({how: True} if how else {})}
    optimizer = Reparameterized(
        module.parameters(), lambda p: kind(p, **options), reparameterization
    )
    shapes = [p.shape for p in module.parameters()]
    matrix = dense(reparameterization.bind(shapes), len(weights(module)))
    inverse = torch.linalg.inv(matrix)

    phis = [nn.Parameter(torch.empty_like(p)) for p in other.parameters()]
    nn.utils.vector_to_parameters(inverse @ weights(other), phis)
    reference = kind(phis, **options)

    def closure():
        theta = matrix @ parameters_to_vector(phis).detach()
        nn.utils.vector_to_parameters(theta, other.parameters())
        value = backward(other, loss)
        gradient = matrix.T @ parameters_to_vector(p.grad for p in other.parameters())
        parts = gradient.split([phi.numel() for phi in phis])
        for phi, part in zip(phis, parts, strict=True):
            phi.grad = part.view_as(phi).clone()
        return value

    for _ in range(10):
        ours = optimizer.step(lambda: backward(module, loss))
        torch.testing.assert_close(ours, reference.step(closure), rtol=1e-8, atol=1e-10)
    theta = matrix @ parameters_to_vector(phis).detach()
    torch.testing.assert_close(weights(module), theta, rtol=1e-7, atol=1e-7)


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=20),  # and momentum
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5, threshold=0.1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[5]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_followed(name):
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    rotated = Reparameterized(
        other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), Rotation()
    )
    rates = []
    for each, optimizer in ((module, plain), (other, rotated)):
        scheduler = SCHEDULERS[name](optimizer)
        rates.append([])
        for _ in range(18):
            value = backward(each, loss)
            optimizer.step()
            scheduler.step(*([value.detach()] if name == "plateau" else []))
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_clipping_acts_on_gradients_of_the_weights():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.1)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=0.1), Rotation())
    for each, optimizer in ((module, plain), (other, rotated)):
        for _ in range(10):
            backward(each, loss)
            nn.utils.clip_grad_norm_(each.parameters(), 0.1)
            optimizer.step()
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    module, other, loss = two()
    expected = backward(module, loss)
    rotated_adam(module).step()
    with torch.no_grad():
        value = rotated_adam(other).step(lambda: backward(other, loss))
    assert torch.equal(value, expected)
    assert torch.equal(weights(other), weights(module))


def test_a_closure_that_fails_leaves_weights_and_state_alone():
    module, other, loss = two()
    optimizer = rotated_adam(module)

    def closure():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step(closure)
    assert torch.equal(weights(module), weights(other))
    expected = train(other, rotated_adam(other), loss, 3)
    assert torch.equal(train(module, optimizer, loss, 3), expected)


def test_loss_scaling_skips_infinite_gradients():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Rotation())
    for each, optimizer in ((module, plain), (other, rotated)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(5):
            each.zero_grad()
            scaler.scale(loss(each)).backward()
            if step == 2:
                each[0].bias.grad[0] = torch.inf
            before = weights(each)
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before, weights(each)) == (step == 2)
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


RESUMED = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
    "BlockwiseAdam": lambda p: BlockwiseAdam(p, lr=0.01, partition="tensor"),
    "AdaSGD": lambda p: AdaSGD(p, lr=0.01),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_with_the_same_bits(name, dtype):
    module, _, loss = two()
    if dtype == torch.bfloat16:
        module.bfloat16()
        x = torch.randn(9, module[0].in_features).bfloat16()

        def loss(m):
            return m(x).square().mean()

    def make(m):
        return Reparameterized(m.parameters(), RESUMED[name], Rotation("tensor", seed=0))

    def go_on(m, optimizer):
        for _ in range(4):
            optimizer.step(lambda: backward(m, loss))
        return weights(m)

    optimizer = make(module)
    go_on(module, optimizer)
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = copy.deepcopy(module)  # of the right shapes
    nn.init.zeros_(other[0].weight)
    other.load_state_dict(saved["module"])
    resumed = make(other)
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(go_on(module, optimizer), go_on(other, resumed))
    ours, theirs = optimizer.state_dict(), resumed.state_dict()
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert ours["param_groups"] == theirs["param_groups"]


@pytest.mark.parametrize("stepped", [True, False])
def test_distributed_checkpoints_keep_weights_and_state(stepped):
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    module, other, loss = two()
    optimizer, fresh = rotated_adam(module), rotated_adam(other)
    if stepped:
        train(module, optimizer, loss, 3)
    before = weights(module)
    state = copy.deepcopy(get_optimizer_state_dict(module, optimizer))  # torch shares tensors
    assert torch.equal(weights(module), before)
    other.load_state_dict(module.state_dict())
    set_optimizer_state_dict(other, fresh, state)
    assert torch.equal(weights(other), before)
    assert torch.equal(train(module, optimizer, loss, 3), train(other, fresh, loss, 3))


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["deepcopy", "pickle"],
)
def test_copies_of_module_and_optimizer_train_as_the_originals(clone):
    module, _, loss = two()
    optimizer = rotated_adam(module)
    train(module, optimizer, loss, 3)
    other, copied = clone((module, optimizer))
    assert torch.equal(train(other, copied, loss, 3), train(module, optimizer, loss, 3))
    assert not torch.equal(train(other, copied, loss, 1), weights(module))  # nothing is shared


def test_between_steps_coordinates_take_no_memory():
    module, _, loss = two()
    optimizer = rotated_adam(module)
    for _ in range(2):
        stepped = [phi for group in optimizer.inner.param_groups for phi in group["params"]]
        assert [phi.shape for phi in stepped] == [p.shape for p in module.parameters()]
        assert {phi.untyped_storage().nbytes() for phi in stepped} == {8}
        assert all(phi.grad is None for phi in stepped)
        train(module, optimizer, loss, 1)


def test_hooks_of_step_and_state_run_once():
    module, _, loss = two()
    optimizer, calls = rotated_adam(module), []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append("before step"))
    optimizer.register_step_post_hook(lambda o, *_: calls.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before save"))
    optimizer.register_state_dict_post_hook(lambda o, s: calls.append("after save"))

    @optimizer.register_load_state_dict_pre_hook
    def forget(o, state_dict):
        calls.append("before load")
        state_dict["state"] = {}

    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after load"))
    train(module, optimizer, loss, 1)
    assert len(optimizer.state) == len(list(module.parameters()))
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert calls == [f"{a} {b}" for b in ("step", "save", "load") for a in ("before", "after")]
    assert not optimizer.state  # as the hook had it
    assert saved["state"]


def test_learning_rates_may_be_tensors_and_may_change():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    rate = torch.tensor(0.01, dtype=torch.float64)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=rate), Rotation())
    assert rotated.param_groups[0]["lr"] is rate
    train(module, plain, loss, 2)
    train(other, rotated, loss, 2)
    plain.param_groups[0]["lr"] = 0.02
    rate.fill_(0.02)
    train(module, plain, loss, 2)
    train(other, rotated, loss, 2)
    plain.param_groups[0].update(lr=0.03, weight_decay=0.1)
    rotated.param_groups[0].update(lr=0.03, weight_decay=0.1)
    torch.testing.assert_close(train(other, rotated, loss, 2), train(module, plain, loss, 2))


class Counting(torch.optim.SGD):
    """Keeps a hyperparameter of its own in its groups, and a state that is of no parameter."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        self.state["all"] = {"count": group["count"]}
        return super().step(closure)


def test_what_the_inner_optimizer_changes_in_groups_and_state_is_seen_and_saved():
    module, other, loss = two()

    def make(m):
        return Reparameterized(m.parameters(), lambda p: Counting(p, lr=0.01), Rotation())

    optimizer, fresh = make(module), make(other)
    train(module, optimizer, loss, 3)
    assert optimizer.param_groups[0]["count"] == optimizer.state["all"]["count"] == 3
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["count"] == fresh.inner.state["all"]["count"] == 3


def test_weights_that_others_change_between_steps_are_respected():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Rotation())
    for each, optimizer in ((module, plain), (other, rotated)):
        average = torch.optim.swa_utils.AveragedModel(each)
        for step in range(10):
            train(each, optimizer, loss, 1)
            average.update_parameters(each)
            with torch.no_grad():
                each[0].weight.mul_(0.9)
            if step == 5:
                each.load_state_dict(average.module.state_dict())
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_a_module_may_change_its_dtype_after_the_optimizer_was_made():
    module, other, loss = two()
    module.float()
    rotated = Reparameterized(
        module.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Rotation()
    )
    module.double().load_state_dict(other.state_dict())
    expected = train(other, torch.optim.SGD(other.parameters(), lr=0.01), loss)
    torch.testing.assert_close(train(module, rotated, loss), expected, **CLOSE)


def test_a_checkpoint_of_the_module_is_that_of_an_ordinary_one():
    module, other, loss = two()
    train(module, rotated_adam(module), loss, 3)
    other.load_state_dict(module.state_dict())
    assert torch.equal(loss(other), loss(module))


def adam_with_a_missing_gradient(scope):
    """Weights before and after a step in which 0.bias has no gradient."""
    module, _, loss = two()
    optimizer = rotated_adam(module, Rotation(scope))
    train(module, optimizer, loss, 2)
    before = weights(module)
    backward(module, loss)
    module[0].bias.grad = None
    optimizer.step()
    return module, before, optimizer


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_parameters_without_gradient_stay_to_the_last_bit(scope):
    module, before, optimizer = adam_with_a_missing_gradient(scope)
    names = [name for name, p in module.named_parameters() for _ in range(p.numel())]
    others = torch.tensor([name != "0.bias" for name in names])
    assert torch.equal((weights(module) != before), others)
    state = optimizer.state[module[0].bias]
    assert state.get("phi.step", state.get("step")) == 2


def test_under_a_global_map_a_missing_gradient_is_zero():
    module, _, _ = adam_with_a_missing_gradient("global")
    other, _, loss = two()
    optimizer = rotated_adam(other)
    train(other, optimizer, loss, 2)
    backward(other, loss)
    other[0].bias.grad.zero_()
    optimizer.step()
    assert torch.equal(weights(other), weights(module))


@pytest.mark.parametrize("scope", SCOPES)
def test_parameters_frozen_from_the_start_stay_as_they_are(scope):
    module, other, loss = two()
    module[0].weight.requires_grad_(False)
    train(module, rotated_adam(module, Rotation(scope)), loss, 3)
    assert torch.equal(module[0].weight, other[0].weight)
    assert not torch.equal(module[0].bias, other[0].bias)


def test_parameters_frozen_later_stay_or_are_refused():
    module, other, loss = two()
    optimizer = rotated_adam(module, Rotation("tensor"))
    module[0].weight.requires_grad_(False)
    train(module, optimizer, loss, 3)
    assert torch.equal(module[0].weight, other[0].weight)
    optimizer = rotated_adam(other, Rotation("global"))
    other[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"got a frozen one.*Freeze it before"):
        train(other, optimizer, loss, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_have_float32_states_and_are_rounded_once(dtype):
    layer = nn.Linear(4, 3, dtype=dtype)
    wide = copy.deepcopy(layer).float()
    optimizer = rotated_adam(layer, lr=0.1)
    gradients = [torch.randn(p.shape).to(dtype) for p in layer.parameters()]
    for each, chosen in ((layer, optimizer), (wide, rotated_adam(wide, lr=0.1))):
        for p, g in zip(each.parameters(), gradients, strict=True):
            p.grad = g.to(p.dtype)
        chosen.step()
    for p, expected in zip(layer.parameters(), wide.parameters(), strict=True):
        assert p.dtype == dtype
        assert optimizer.state[p]["phi.exp_avg"].dtype == torch.float32
        assert optimizer.state[p]["phi.exp_avg_sq"].dtype == torch.float32
        assert torch.equal(p, expected.to(dtype))


def test_groups_of_several_dtypes_share_the_widest():
    narrow, wide = (nn.Parameter(torch.ones(5, dtype=d)) for d in (torch.bfloat16, torch.float64))
    optimizer = Reparameterized([narrow, wide], lambda p: torch.optim.Adam(p, lr=0.1), Rotation())
    narrow.grad, wide.grad = torch.ones_like(narrow), torch.ones_like(wide)
    optimizer.step()
    assert {s["phi.exp_avg"].dtype for s in optimizer.state.values()} == {torch.float64}
    assert (narrow != 1).any()
    assert (wide != 1).all()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 1, 3)])
@pytest.mark.parametrize("scope", SCOPES)
def test_shapes_at_the_edge(scope, shape):
    p = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = Reparameterized([p], lambda q: torch.optim.SGD(q, lr=0.25), Rotation(scope))
    p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.75))


def test_memory_formats_stay():
    p = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    q = nn.Parameter(p.detach().contiguous())
    for each in (p, q):
        each.grad = torch.arange(120.0).view(2, 3, 4, 5)
        rotated = Reparameterized([each], lambda x: torch.optim.Adam(x, lr=0.1), Rotation())
        rotated.step()
    assert p.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(p, q)


def shuffled_groups(module):
    """Biases first, so the order is not the module's."""
    named = list(module.named_parameters())
    return [
        {"params": [p for n, p in named if "bias" in n], "lr": 0.02},
        {"params": [p for n, p in named if "bias" not in n][::-1]},
    ]


def test_coordinates_have_the_order_of_the_parameters_given():
    module, other, loss = two()
    optimizer = Reparameterized(
        shuffled_groups(module), lambda p: torch.optim.SGD(p, lr=0.02), Dense()
    )
    matrix = dense(optimizer.coordinates(list(module.parameters())), len(weights(module)))
    before = weights(module)
    backward(module, loss)
    gradient = parameters_to_vector(p.grad for p in module.parameters())
    optimizer.step()
    torch.testing.assert_close(weights(module) - before, -0.02 * matrix @ matrix.T @ gradient)

    hessian = networks.dense_hessian(other, lambda: loss(other))
    coordinates = Reparameterized(
        shuffled_groups(other), lambda p: torch.optim.SGD(p, lr=0.02), Dense()
    ).coordinates(list(other.parameters()))
    with Landscape(
        other, [None], loss=lambda m, _: loss(m), reparameterization=coordinates
    ) as landscape:
        units = torch.eye(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(landscape.hvp(units), matrix.T @ hessian @ matrix)


def test_a_state_of_other_coordinates_is_refused():
    module, other, _ = two()
    saved = rotated_adam(module, Rotation(seed=1)).state_dict()
    optimizer = rotated_adam(other)
    with pytest.raises(ValueError, match=r"same coordinates, with .*seed=0.*got .*seed=1"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"got none. Resume with the map"):
        optimizer.load_state_dict(torch.optim.Adam(module.parameters()).state_dict())
    other[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"with 6 of 7 tensors.*got 7 of 7.*frozen parameters"):
        rotated_adam(other).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_sparse_gradients_are_refused_only_where_they_would_be_mapped():
    embedding, layer = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)
    named = [
        *(("embedding", p) for p in embedding.parameters()),
        *(("layer", p) for p in layer.parameters()),
    ]

    def step(only):
        optimizer = Reparameterized(
            named, lambda p: torch.optim.SGD(p, lr=0.1), Rotation(only=only)
        )
        layer(embedding(torch.tensor([1, 2]))).sum().backward()
        optimizer.step()

    step("layer")
    with pytest.raises(RuntimeError, match=r"got a sparse one. Use sparse=False"):
        step("embedding")


def parameter(dtype=torch.float32, device=None):
    return nn.Parameter(torch.zeros(3, dtype=dtype, device=device))


def flattened():
    p = parameter()
    p._fsdp_flattened = True  # as FullyShardedDataParallel marks what it flattens
    return p


def sgd(p):
    return torch.optim.SGD(p, lr=0.1)


@pytest.mark.parametrize(
    ("params", "factory", "reparameterization", "message"),
    [
        ([parameter()], sgd, "global", "expected `reparameterization` to be one, got 'global'"),
        ([parameter(torch.complex64)], sgd, Rotation(), "real floating.*got torch.complex64"),
        ([parameter(), parameter(device="meta")], sgd, Rotation(), "one device, got cpu, meta"),
        ([flattened()], sgd, Rotation(), r"their own shapes, got one flattened.*fully_shard"),
        ([parameter()], lambda p: None, Rotation(), "`factory` to make.*got NoneType"),
        ([parameter()], lambda p: sgd([parameter()]), Rotation(), "got one of others"),
        ([parameter(), parameter()], lambda p: sgd(p[::-1]), Rotation(), "got one of others"),
        ([parameter(), parameter()], lambda p: sgd(p[:1]), Rotation(), "got one of others"),
        (
            [parameter(), parameter()],
            lambda p: sgd([{"params": [q]} for q in p]),
            Rotation(),
            "in their order and groups, got one of others",
        ),
        ([parameter()], sgd, Rotation(only="weight"), "expected names of the parameters"),
        ([("bias", parameter())], sgd, Rotation(only="weight"), "`only` to match the name"),
        ([], sgd, Rotation(), "empty parameter list"),
    ],
)
def test_misuse_is_refused(params, factory, reparameterization, message):
    with pytest.raises(ValueError, match=message):
        Reparameterized(params, factory, reparameterization)


@pytest.mark.parametrize("directly", [False, True])
def test_groups_that_come_later_have_their_own_part_of_the_map(directly):
    module, other, loss = two()
    first, *rest = module.parameters()
    optimizer = Reparameterized([first], sgd, Rotation())
    if directly:  # as some callbacks do when they resume
        optimizer.param_groups.append({"params": rest, "lr": 0.2})
    else:
        optimizer.add_param_group({"params": rest, "lr": 0.2})
    train(module, optimizer, loss, 5)
    parameters = list(other.parameters())
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}]
    expected = train(other, torch.optim.SGD(groups, lr=0.1), loss, 5)
    torch.testing.assert_close(weights(module), expected, **CLOSE)
    ours = optimizer.coordinates(list(module.parameters()))
    given = Reparameterized(groups, sgd, Rotation()).coordinates(parameters)
    torch.testing.assert_close(dense(ours, len(expected)), dense(given, len(expected)))
    assert optimizer.param_groups[1]["reparameterization"].startswith("6 of 6 tensors")


def test_groups_that_are_replaced_are_refused():
    optimizer = Reparameterized([parameter()], sgd, Rotation())
    optimizer.param_groups[0]["params"] = [parameter()]
    with pytest.raises(RuntimeError, match=r"expected the 1 parameter groups .*got other.*Make a"):
        optimizer.step()
    optimizer.param_groups.clear()
    with pytest.raises(RuntimeError, match="expected the 1 parameter groups"):
        optimizer.step()


def test_a_group_that_the_map_cannot_place_is_refused_and_not_kept():
    layer = nn.Linear(2, 2)
    optimizer = Reparameterized(
        [("weight", layer.weight)], sgd, Rotation("tensor", only="weight|gain")
    )
    optimizer.add_param_group({"params": [("bias", layer.bias)]})  # stays as it is
    gain = parameter(torch.complex64)
    with pytest.raises(ValueError, match="real floating"):
        optimizer.add_param_group({"params": [("gain", gain)]})
    mapped = [group["reparameterization"][:6] for group in optimizer.param_groups]
    assert mapped == ["1 of 1", "0 of 1"]
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()


class ScheduleFree(torch.optim.Optimizer):
    """SGD after Defazio et al., The Road Less Scheduled, arXiv:2405.15682, equations 1 to 3.

    In training mode the parameters are y, where gradients are taken; else x, the average.
    """

    def __init__(self, params, lr=0.05, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "num_steps": 0, "train_mode": True})

    @torch.no_grad()
    def eval(self):
        for group in self.param_groups:
            if group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - 1 / group["beta"])
            group["train_mode"] = False

    @torch.no_grad()
    def train(self):
        for group in self.param_groups:
            if not group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - group["beta"])
            group["train_mode"] = True

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"]
            beta, group["num_steps"] = group["beta"], group["num_steps"] + 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "z" not in self.state[p]:
                    self.state[p]["z"] = p.clone()
                z = self.state[p]["z"]
                x = p.lerp(z, 1 - 1 / beta)
                z.sub_(group["lr"] * p.grad)
                x.lerp_(z, 1 / group["num_steps"])
                p.copy_(z.lerp(x, beta))


@pytest.mark.parametrize("reparameterization", [Rotation(), Rotation("tensor"), Scaling(1.0)])
@pytest.mark.parametrize("clone", [lambda o: o, copy.deepcopy])
def test_schedule_free_optimizers_change_between_training_and_evaluation(reparameterization, clone):
    module, other, loss = two()
    plain = ScheduleFree(module.parameters())
    rotated = clone(Reparameterized(other.parameters(), ScheduleFree, reparameterization))
    if clone is copy.deepcopy:
        other = nn.ParameterList(rotated.param_groups[0]["params"])
        module = nn.ParameterList(module.parameters())
        target = torch.randn(len(weights(module)), dtype=torch.float64)

        def loss(m):
            return (parameters_to_vector(m.parameters()) - target).square().sum()

    for _ in range(5):
        averages = []
        for each, optimizer in ((module, plain), (other, rotated)):
            optimizer.train()
            trained = train(each, optimizer, loss, 3)
            optimizer.eval()
            optimizer.eval()  # nothing more
            averages.append(weights(each))
            assert not optimizer.param_groups[0]["train_mode"]
        torch.testing.assert_close(averages[1], averages[0], **CLOSE)
        assert (averages[1] - trained).abs().max() > 1e-3
    saved = copy.deepcopy(rotated.state_dict())
    rotated.load_state_dict(saved)
    for each, optimizer in ((module, plain), (other, rotated)):
        optimizer.train()
        train(each, optimizer, loss, 1)
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_other_optimizers_have_no_modes():
    optimizer = rotated_adam(two()[0])
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")


def test_schedulefrees_own_optimizer_is_rotated():
    schedulefree = pytest.importorskip("schedulefree", reason="needs schedulefree")
    module, other, loss = two()
    plain = schedulefree.SGDScheduleFree(module.parameters(), lr=0.01)
    rotated = Reparameterized(
        other.parameters(), lambda p: schedulefree.SGDScheduleFree(p, lr=0.01), Rotation()
    )
    for each, optimizer in ((module, plain), (other, rotated)):
        for _ in range(3):
            optimizer.train()
            train(each, optimizer, loss, 5)
            optimizer.eval()
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_lazy_parameters_are_refused_before_and_mapped_after_the_module_has_run():
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"got a lazy one. Run the module once before"):
        Reparameterized(module.parameters(), sgd, Rotation())
    late = Reparameterized(module.named_parameters(), sgd, Rotation(only=r"^1\."))
    module(torch.ones(1, 4)).sum().backward()
    for optimizer in (late, Reparameterized(module.parameters(), sgd, Rotation())):
        before = weights(module)
        optimizer.step()
        gradient = parameters_to_vector(p.grad for p in module.parameters())
        torch.testing.assert_close(weights(module), before - 0.1 * gradient)


def test_coordinates_of_too_few_parameters_are_refused():
    first, second = parameter(), parameter()
    optimizer = Reparameterized([first, second], sgd, Rotation())
    with pytest.raises(ValueError, match="all parameters that the map changes, got 1 too few"):
        optimizer.coordinates([first])


@pytest.mark.gpu
def test_fused_adam_on_cuda_equals_the_cpu_and_never_waits():
    module, other, loss = two()
    optimizer = rotated_adam(module, fused=True)
    other.cuda()
    on_gpu = rotated_adam(other, fused=True)
    for step in range(10):
        backward(module, loss)
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            q.grad = p.grad.cuda()
        optimizer.step()
        if step > 1:  # the first ones make states and compile nothing twice
            torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(weights(other).cpu(), weights(module), rtol=1e-8, atol=1e-8)


def test_no_plain_optimizer_takes_a_state_in_other_coordinates_for_its_own():
    module, _, loss = two()
    rotated = rotated_adam(module)
    train(module, rotated, loss, 2)
    plain = torch.optim.Adam(module.parameters(), lr=0.01)
    with pytest.raises(KeyError, match="step"):
        plain.load_state_dict(rotated.state_dict())


def test_a_state_that_went_on_without_the_map_is_refused_whatever_its_groups_say():
    module, _, loss = two()
    rotated = rotated_adam(module)
    train(module, rotated, loss, 2)
    state = rotated.state_dict()
    for entry in state["state"].values():
        for name in list(entry):
            entry[name.removeprefix("phi.")] = entry.pop(name)
    with pytest.raises(ValueError, match=r"expected a state in coordinates phi, got .*exp_avg"):
        rotated.load_state_dict(state)


class BySetting(torch.optim.Optimizer):
    """SGD that puts new tensors where the parameters' were, as some implementations of SAM do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_an_optimizer_may_set_the_data_of_its_parameters():
    module, other, loss = two()
    rotated = Reparameterized(other.parameters(), lambda p: BySetting(p, 0.1), Rotation())
    expected = train(module, torch.optim.SGD(module.parameters(), lr=0.1), loss)
    torch.testing.assert_close(train(other, rotated, loss), expected, **CLOSE)
