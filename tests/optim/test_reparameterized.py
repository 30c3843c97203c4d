"""Optimizers in other coordinates follow the laws of their maps."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.coordinates import CLOSE, SCOPES, backward, grouped, rotated_adam, train, two, weights
from torch import nn
from torch.nn.utils import parameters_to_vector

from lightning_linf import Partition
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized
from lightning_linf.reparam import (
    Permutation,
    Rotation,
    Scaling,
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


@pytest.mark.slow
@settings(max_examples=8)
@given(**ROTATED_SGD)
def test_rotated_sgd_follows_sgd(**choice):
    check_rotated_sgd(**choice)


@pytest.mark.slow
@settings(max_examples=50)
@given(**ROTATED_SGD)
def test_rotated_sgd_follows_sgd_in_many_cases(**choice):
    check_rotated_sgd(**choice)


@pytest.mark.parametrize("scope", SCOPES)
def test_rotated_adam_does_not_follow_adam(scope):
    module, other, loss = two()
    expected = train(module, torch.optim.Adam(module.parameters(), lr=0.01), loss, 20)
    rotated = train(other, rotated_adam(other, Rotation(scope)), loss, 20)
    assert (rotated - expected).abs().max() > 0.01


@settings(max_examples=5)
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


@settings(max_examples=5)
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
