"""Thresholds against what descent does on a quadratic of one parameter."""

import pytest
import torch

from lightning_linf.functional import stability_threshold

# Momentum, dampening, Nesterov's momentum, coupled weight decay.
DESCENTS = {
    "plain": (0.0, 0.0, False, 0.0),
    "momentum": (0.9, 0.0, False, 0.0),
    "a little momentum": (0.3, 0.0, False, 0.0),
    "dampened": (0.9, 0.5, False, 0.0),
    "running mean": (0.9, 0.9, False, 0.0),
    "Nesterov's momentum": (0.9, 0.0, True, 0.0),
    "a little of Nesterov's momentum": (0.2, 0.0, True, 0.0),
    "weight decay": (0.9, 0.0, False, 0.7),
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 3.8),
        ({"momentum": 0.9, "dampening": 0.9}, 38.0),
        ({"momentum": 0.95, "dampening": 0.95}, 78.0),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8),
        ({"keep": 0.9}, 1.9),
    ],
)
def test_known_thresholds(options, expected):
    assert stability_threshold(**options) == pytest.approx(expected, rel=1e-12)


def distance_after(steps, curvature, momentum, dampening, nesterov, weight_decay):
    """How far torch's own descent at a learning rate of 1 is from the minimum."""
    theta = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = torch.optim.SGD(
        [theta], 1.0, momentum, dampening, weight_decay=weight_decay, nesterov=nesterov
    )
    for _ in range(steps):
        theta.grad = curvature * theta.detach()
        optimizer.step()
    return abs(float(theta.detach()))


@pytest.mark.parametrize("kind", DESCENTS)
def test_torch_converges_just_below_and_diverges_just_above(kind):
    momentum, dampening, nesterov, decay = DESCENTS[kind]
    threshold = stability_threshold(momentum, dampening=dampening, nesterov=nesterov)
    below, above = (
        distance_after(2_000, factor * threshold - decay, *DESCENTS[kind])
        for factor in (0.99, 1.01)
    )
    assert below < 1e-3
    assert above > 1e3


@pytest.mark.parametrize("keep", [1.0, 0.99, 0.7])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_threshold_is_where_an_eigenvalue_of_the_step_is_minus_one(momentum, nesterov, keep):
    threshold = stability_threshold(momentum, nesterov=nesterov, keep=keep)

    def largest(curvature):  # of the step of (theta, v), written as a matrix
        ahead = momentum if nesterov else 1.0
        direct = curvature if nesterov else 0.0
        matrix = [
            [keep - direct - ahead * curvature, -ahead * momentum],
            [curvature, momentum],
        ]
        return torch.linalg.eigvals(torch.tensor(matrix, dtype=torch.float64))

    at_edge = largest(threshold)
    assert float((at_edge + 1).abs().min()) < 1e-9
    assert float(at_edge.abs().max()) < 1 + 1e-9
    for fraction in (0.01, 0.3, 0.7, 0.999):
        assert float(largest(fraction * threshold).abs().max()) < 1


@pytest.mark.parametrize(("momentum", "dampening"), [(1.0, 0.0), (-0.1, 0.0), (0.9, 1.0)])
def test_descent_that_no_rate_makes_stable_is_refused(momentum, dampening):
    with pytest.raises(ValueError, match=r"stability_threshold: expected `momentum` in \[0, 1\)"):
        stability_threshold(momentum, dampening=dampening)
