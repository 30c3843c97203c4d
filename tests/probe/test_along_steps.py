"""Smoothness along the step that training has made."""

import pytest
import torch
from support.landscapes import (
    DIM,
    NAMES,
    ROUNDING,
    Dense,
    Quadratic,
    gradient_of,
    indefinite,
    normal,
    random_net,
    value_of,
)
from torch import nn

from lightning_linf.functional import block_norm, dual_block_norm
from lightning_linf.probe import Landscape, measure_landscape
from lightning_linf.probe.partitions import choose_partitions


def test_secant_on_a_quadratic_has_its_closed_form():
    module, step = Quadratic(indefinite(), normal(DIM)), 0.3 * normal(DIM)
    chosen = choose_partitions(module, NAMES)
    with Landscape(module, [torch.zeros(1)], loss=value_of) as landscape:
        report = measure_landscape(landscape, chosen, last_step=step)
        plain = measure_landscape(landscape, chosen)
    assert plain.secant is None
    for partition in chosen:
        change = dual_block_norm(module.hessian @ step, partition)
        expected = float(change / block_norm(step, partition))
        torch.testing.assert_close(report.secant[partition.name], expected)
        # The secant of a quadratic is one direction's, so it is at most N.
        assert report.secant[partition.name] <= (
            report.smoothness[partition.name].operator_upper * (1 + ROUNDING)
        )
    assert report.smoothness == plain.smoothness


def test_secant_on_a_net_is_the_change_of_its_own_gradient():
    module, batch, loss, gradient, _ = random_net(6)
    step = 0.1 * normal(len(gradient))
    chosen = choose_partitions(module, NAMES)
    with Landscape(module, [batch], loss=loss) as landscape:
        secant = measure_landscape(landscape, chosen, last_step=step).secant
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    nn.utils.vector_to_parameters(theta - step, module.parameters())
    change = gradient - gradient_of(module, batch, loss)
    for partition in chosen:
        expected = float(dual_block_norm(change, partition) / block_norm(step, partition))
        torch.testing.assert_close(secant[partition.name], expected)


def test_secant_along_a_short_step_is_that_of_the_hessian():
    module, batch, loss, _, hessian = random_net(6)
    step = 1e-5 * normal(len(hessian))
    chosen = choose_partitions(module, NAMES)
    with Landscape(module, [batch], loss=loss) as landscape:
        secant = measure_landscape(landscape, chosen, last_step=step).secant
    for partition in chosen:
        expected = float(dual_block_norm(hessian @ step, partition) / block_norm(step, partition))
        torch.testing.assert_close(secant[partition.name], expected, rtol=1e-3, atol=0)


def test_zero_step_has_no_secant():
    module = Quadratic(indefinite())
    chosen = choose_partitions(module, NAMES)
    with Landscape(module, [torch.zeros(1)], loss=value_of) as landscape:
        report = measure_landscape(landscape, chosen, last_step=torch.zeros(DIM).double())
    assert report.secant is None


def test_last_step_together_with_a_reparameterization_is_refused():
    module = Quadratic(indefinite())
    chosen = choose_partitions(module, NAMES)
    options = {"loss": value_of, "reparameterization": Dense(torch.eye(DIM).double())}
    with (
        Landscape(module, [torch.zeros(1)], **options) as landscape,
        pytest.raises(ValueError, match="expected no `last_step` together with a reparam"),
    ):
        measure_landscape(landscape, chosen, last_step=normal(DIM))


def test_last_step_of_a_wrong_shape_is_refused():
    module = Quadratic(indefinite())
    chosen = choose_partitions(module, NAMES)
    with (
        Landscape(module, [torch.zeros(1)], loss=value_of) as landscape,
        pytest.raises(ValueError, match=r"shape \(42,\)"),
    ):
        measure_landscape(landscape, chosen, last_step=normal(DIM - 1))
