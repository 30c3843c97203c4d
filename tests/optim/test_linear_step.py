"""What is read of a live optimizer is what its own steps were made of."""

import pytest
import torch
from torch import nn

from lightning_linf import Partition, Rotation, Scaling
from lightning_linf.errors import ProbeError
from lightning_linf.functional import stability_threshold
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.optim.linear_step import linear_steps

# From parameters to an optimizer whose step is -rates times its running mean of the gradient.
ADAPTIVE = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam with other betas": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.5), amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0, fused=True),
    "AdamW with a tensor": lambda p: torch.optim.AdamW(p, torch.tensor(0.1), weight_decay=0.0),
    "coordinate": lambda p: BlockwiseAdam(p, lr=0.1, partition="coordinate"),
    "tensor": lambda p: BlockwiseAdam(p, lr=0.1, eps=0.1),
    "eps inside": lambda p: BlockwiseAdam(p, lr=0.1, eps=0.1, eps_inside=True),
    "AdaSGD": lambda p: AdaSGD(p, lr=0.1),
}


def make_module():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def make_steps(module, optimizer, num_steps=7):
    """Make steps on random data; give the parameters before the last of them."""
    for _ in range(num_steps):
        optimizer.zero_grad()
        module(torch.randn(8, 3, dtype=torch.float64)).square().mean().backward()
        before = [p.detach().clone() for p in module.parameters()]
        optimizer.step()
    return before


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_the_last_step_was_minus_rates_times_the_running_mean(kind):
    module = make_module()
    optimizer = ADAPTIVE[kind](list(module.parameters()))
    before = make_steps(module, optimizer)
    steps = linear_steps([optimizer])
    for p, former in zip(module.parameters(), before, strict=True):
        move = -steps[p].rates * optimizer.state[p]["exp_avg"]
        torch.testing.assert_close(p.detach(), former + move)
        assert steps[p].threshold == stability_threshold(
            optimizer.param_groups[0]["betas"][0], dampening=optimizer.param_groups[0]["betas"][0]
        )
        assert steps[p].weight_decay == 0


def test_blocks_of_a_partition_share_their_rates():
    module = make_module()
    rows = Partition.of(module, "row")
    optimizer = BlockwiseAdam(module.named_parameters(), lr=0.1, partition=rows)
    before = make_steps(module, optimizer)
    rates = linear_steps([optimizer])[module[0].weight].rates
    move = -rates * optimizer.state[module[0].weight]["exp_avg"]
    torch.testing.assert_close(module[0].weight.detach(), before[0] + move)
    assert torch.equal(rates, rates[:, :1].expand_as(rates))
    assert len(rates.unique()) == 4


def test_in_other_coordinates_rates_are_those_of_phi():
    module = make_module()
    parameters = list(module.parameters())
    scaling = Scaling(torch.linspace(0.5, 2.0, sum(p.numel() for p in parameters)))
    optimizer = Reparameterized(
        parameters, lambda p: torch.optim.Adam(p, lr=0.1), scaling @ Rotation(seed=0)
    )
    before = make_steps(module, optimizer)
    steps = linear_steps([optimizer])
    mean = torch.cat([optimizer.state[p]["phi.exp_avg"].reshape(-1) for p in parameters])
    rates = torch.cat([steps[p].rates.reshape(-1) for p in parameters])
    move = optimizer.coordinates(parameters).apply(-rates * mean)
    moved = [p.detach() - former for p, former in zip(parameters, before, strict=True)]
    torch.testing.assert_close(torch.cat([m.reshape(-1) for m in moved]), move)


def test_a_schedulers_learning_rate_counts_also_in_other_coordinates():
    module = make_module()
    optimizer = Reparameterized(
        module.parameters(), lambda p: torch.optim.Adam(p, lr=0.1), Rotation(seed=0)
    )
    make_steps(module, optimizer)
    full = linear_steps([optimizer])
    optimizer.param_groups[0]["lr"] = 0.05
    half = linear_steps([optimizer])
    for p in module.parameters():
        torch.testing.assert_close(half[p].rates, full[p].rates / 2)


def test_each_group_has_its_own_rate_threshold_and_decay():
    module = make_module()
    first, second = module[0].parameters(), module[2].parameters()
    groups = [
        {"params": first, "lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"params": second, "dampening": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    steps = linear_steps([optimizer])
    a, b = steps[module[0].bias], steps[module[2].bias]
    assert (float(a.rates[0]), float(b.rates[0])) == pytest.approx((0.3, 0.2))
    assert a.threshold == stability_threshold(0.9, nesterov=True)
    assert b.threshold == 2  # without momentum torch dampens nothing
    assert (a.weight_decay, b.weight_decay) == (0.1, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
        lambda p: BlockwiseAdam(p, lr=0.1, weight_decay=0.5),
        lambda p: Reparameterized(
            p, lambda q: torch.optim.AdamW(q, lr=0.1, weight_decay=0.5), Rotation()
        ),
    ],
)
def test_decoupled_decay_moves_the_threshold_and_coupled_decay_is_curvature(make):
    module = make_module()
    parameters = list(module.parameters())
    optimizer = make(parameters)
    make_steps(module, optimizer)
    decoupled = linear_steps([optimizer])[parameters[0]]
    assert decoupled.weight_decay == 0
    assert decoupled.threshold == pytest.approx(19 * (2 - 0.05))
    coupled = torch.optim.Adam(parameters, lr=0.1, weight_decay=0.5)
    make_steps(module, coupled)
    step = linear_steps([coupled])[parameters[0]]
    assert (step.weight_decay, step.threshold) == (0.5, pytest.approx(38))


def test_a_parameter_that_never_had_a_gradient_is_not_stepped():
    module, idle = make_module(), nn.Parameter(torch.ones(2))
    for make in (torch.optim.Adam, BlockwiseAdam):
        optimizer = make([*module.parameters(), idle])
        make_steps(module, optimizer)
        assert torch.equal(linear_steps([optimizer])[idle].rates, torch.zeros(2))


def test_low_precision_moments_give_float32_rates():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.Adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    (step,) = linear_steps([optimizer]).values()
    assert step.rates.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (Signum, ValueError, "expected an optimizer whose step is linear .* got Signum"),
        (torch.optim.RMSprop, ValueError, r"\(SGD, Adam, AdamW, BlockwiseAdam, .* got RMSprop"),
        (lambda p: torch.optim.SGD(p, 0.1, maximize=True), ValueError, "minimizes, got SGD"),
        (torch.optim.Adam, ProbeError, "expected Adam to have made a step"),
        (AdaSGD, ProbeError, "expected AdaSGD to have made a step"),
    ],
)
def test_what_has_no_edge_is_refused(make, error, message):
    with pytest.raises(error, match=f"measure_edge: .*{message}"):
        linear_steps([make(make_module().parameters())])
