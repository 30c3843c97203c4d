"""Losses at a few multiples of a step: where to evaluate next, and what they say, with errors."""

import math
import random

import pytest
import torch

from lightning_linf.functional.batch_covariance import (
    batch_covariance_compute,
    batch_covariance_update,
)
from lightning_linf.functional.line_fit import line_fit, stencil
from lightning_linf.functional.line_search import critical_bracket, next_multiple


def evaluate(loss, count=7, whole=False):
    losses = {}
    while len(losses) < count:
        multiple = next_multiple(losses, whole=whole)
        assert multiple not in losses
        losses[multiple] = loss(multiple)
    return losses


def parabola(slope, curvature):
    return lambda c: 2 + slope * c + curvature * c * c / 2


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("critical", [0.6, 1.2, 1.9, 3.7, 24.0, 200.0])
def test_of_a_parabola_every_number_is_exact(critical, whole):
    losses = evaluate(parabola(-0.5 * critical, 1.0), whole=whole)
    fit = line_fit(losses)
    assert fit.change.value == pytest.approx(0.5 - 0.5 * critical, rel=1e-9)
    assert fit.curvature.value == pytest.approx(1.0, rel=1e-9)
    assert fit.lowest.value == pytest.approx(critical / 2, rel=1e-9)
    lower, upper = fit.bracket
    assert lower <= critical <= upper
    if lower > 0:
        assert fit.critical.value == pytest.approx(critical, rel=1e-9)
        assert fit.critical.error < 1e-9 * critical
    else:  # no whole multiple lowers it
        assert whole
        assert critical < 1
    assert fit.roughness < 1e-12
    if not whole and critical < 100:
        assert upper - lower < 0.5 * critical
    if whole:
        assert all(c == round(c) for c in losses)


def test_a_loss_that_falls_everywhere_has_a_lower_end_alone():
    losses = evaluate(lambda c: -c)
    fit = line_fit(losses)
    assert fit.bracket == (max(losses), math.inf)
    assert max(losses) > 100
    assert math.isnan(fit.critical.value)
    assert math.isnan(fit.lowest.value)


def test_a_step_uphill_has_an_upper_end_alone_and_its_minimum_behind_it():
    fit = line_fit(evaluate(parabola(0.3, 1.0)))
    assert fit.bracket[0] == 0
    assert fit.bracket[1] < 0.01
    assert fit.lowest.value == pytest.approx(-0.3, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_has_risen(bad):
    losses = evaluate(lambda c: parabola(-5, 1.0)(c) if c < 6 else bad)
    lower, upper = critical_bracket(losses)
    assert 2 <= lower < 6 <= upper < 16
    fit = line_fit(losses)
    assert lower < fit.critical.value < upper
    assert fit.critical.error == pytest.approx((upper - lower) / 2)
    assert fit.curvature.value == pytest.approx(1.0, rel=1e-9)


def test_a_step_after_which_the_loss_is_not_finite_is_searched_below():
    losses = evaluate(lambda c: parabola(-0.3, 1.0)(c) if c < 1 else math.nan)
    fit = line_fit(losses)
    assert fit.bracket[0] <= 0.6 <= fit.bracket[1] <= 1
    assert math.isnan(fit.change.value)
    assert math.isnan(fit.curvature.value)


def test_the_first_rise_counts():
    losses = {0.0: 1.0, 1.0: 0.9, 2.0: 1.1, 3.0: 0.5}
    assert critical_bracket(losses) == (1.0, 2.0)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_errors_cover_the_noise_of_losses(whole):
    """Of a smooth loss with noise, 68 % of numbers are within one error, up to 4 standard errors.

    Errors come from one or two degrees of freedom, so the share is what Student's t gives.
    """
    random.seed(3)
    num_trials, hits = 400, dict.fromkeys(("change", "curvature", "critical"), 0)
    exact = {"change": -0.875, "curvature": 0.25, "critical": 8.0}
    for _ in range(num_trials):
        fit = line_fit(
            evaluate(lambda c: parabola(-1, 0.25)(c) + random.gauss(0, 1e-3), whole=whole)
        )
        for name, value in exact.items():
            estimate = getattr(fit, name)
            hits[name] += abs(estimate.value - value) <= estimate.error
    spread = 4 * math.sqrt(0.68 * 0.32 / num_trials)
    for name, count in hits.items():
        assert count / num_trials > 0.68 - spread, name


def test_a_smooth_loss_is_within_twice_its_errors():
    def loss(c):
        return math.exp(0.3 * c) - 0.9 * c

    fit = line_fit(evaluate(loss))
    curvature, lowest = 0.09 * math.exp(0.3), math.log(3.0) / 0.3
    assert abs(fit.curvature.value - curvature) <= 2 * fit.curvature.error
    assert fit.curvature.error < 0.2 * curvature
    assert abs(fit.lowest.value - lowest) <= 2 * fit.lowest.error
    lower, upper = fit.bracket
    assert loss(lower) < 1 <= loss(upper)
    for _ in range(60):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if loss(middle) < 1 else (lower, middle)
    assert abs(fit.critical.value - lower) <= 2 * fit.critical.error < 0.1


def test_a_wild_loss_far_away_leaves_the_numbers_near_the_step_alone():
    def loss(c):
        return parabola(-4, 1.0)(c) + (1e6 if c > 8 else 0)

    fit = line_fit(evaluate(loss))
    assert fit.curvature.value == pytest.approx(1.0, rel=1e-9)
    assert fit.change.error < 1e-9


def test_weights_of_derivatives_are_exact_for_polynomials():
    nodes = [0.0, 0.5, 2.0, 7.0]
    values = torch.tensor([c**3 - 2 * c for c in nodes], dtype=torch.float64)
    exact = {0: 1.5**3 - 3, 1: 3 * 1.5**2 - 2, 2: 9.0, 3: 6.0}
    for order, value in exact.items():
        assert float(stencil(nodes, 1.5, order) @ values) == pytest.approx(value, rel=1e-10)


def test_rounding_to_a_dtype_is_the_least_error():
    losses = evaluate(parabola(-5, 1.0))
    exact, rounded = line_fit(losses), line_fit(losses, rounding=1e-3)
    assert exact.change.error < 1e-9
    expected = 1e-3 * math.hypot(losses[0.0], losses[1.0])
    assert rounded.change.error == pytest.approx(expected, rel=1e-6)


def test_covariance_of_batches_is_that_of_paired_differences():
    generator = torch.Generator().manual_seed(1)
    losses = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    weights = torch.ones(30, dtype=torch.float64)
    squares = batch_covariance_update(losses, weights, losses.mean(0))
    covariance = batch_covariance_compute(squares, 30.0, 30)
    torch.testing.assert_close(covariance, torch.cov(losses.T) / 30)
    difference = losses[:, 1] - losses[:, 0]
    paired = covariance[1, 1] + covariance[0, 0] - 2 * covariance[0, 1]
    torch.testing.assert_close(paired, difference.var() / 30)
    doubled = batch_covariance_compute(2 * squares, 60.0, 60, copies=2)
    torch.testing.assert_close(doubled, covariance)
    assert batch_covariance_compute(squares, 1.0, 1) is None
    assert batch_covariance_compute(squares, 2.0, 2, copies=2) is None


def test_errors_of_batches_reach_every_number():
    losses = evaluate(parabola(-5, 1.0))
    variance = 1e-4 * torch.eye(len(losses), dtype=torch.float64)
    fit = line_fit(losses, variance)
    assert fit.change.error == pytest.approx(1e-2 * math.sqrt(2), rel=1e-6)
    assert fit.curvature.error == pytest.approx(1e-2 * math.sqrt(6), rel=1e-6)
    assert fit.critical.error > 1e-3
    assert fit.roughness < 1e-9
