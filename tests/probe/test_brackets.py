"""Both ends of every smoothness against brute force on dense Hessians and closed forms."""

import itertools
import math

import pytest
import torch
from support.adaptive_smoothness import adaptive_smoothness_by_barrier
from support.landscapes import (
    DIM,
    EXACT,
    NAMES,
    ROUNDING,
    Quadratic,
    check_brackets,
    indefinite,
    measure,
    normal,
    random_net,
)
from support.networks import (
    operator_norm_by_restarts,
    smoothness_by_restarts,
    upper_bound_of_smoothness,
)
from torch import nn

from lightning_linf.functional import dual_block_norm, dual_direction
from lightning_linf.partition import Partition
from lightning_linf.probe import measure_geometry


def check_net(seed, num_restarts):
    module, batch, loss, gradient, hessian = random_net(seed)
    dim = len(hessian)
    report = measure_geometry(module, [batch], loss=loss, partitions=NAMES, seed=seed)
    assert report.num_params == dim
    torch.testing.assert_close(report.loss, loss(module, batch).item())
    for name in NAMES:
        partition = Partition.of(module, name)
        ratio = check_brackets(report, hessian, partition, num_restarts=num_restarts, num_probes=16)
        assert ratio > 0.9, (seed, name)  # an ascent may stop at a local maximum: 0.936 at worst
        torch.testing.assert_close(
            report.dual_norm[name], float(dual_block_norm(gradient, partition)), **EXACT
        )
        step = dual_direction(gradient, partition)
        torch.testing.assert_close(report.curvature[name], float(step @ hessian @ step), **EXACT)
    exact = float(torch.linalg.eigvalsh(hessian).abs().max())
    torch.testing.assert_close(report.lambda_max, exact, rtol=1e-2, atol=0)
    torch.testing.assert_close(report.smoothness["global"].lower, dim * exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("seed", [5, 17, 18])
def test_brackets_hold_the_brute_force_norms_of_a_random_net(seed):
    check_net(seed, num_restarts=60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_brackets_hold_the_brute_force_norms_of_twenty_random_nets(seed):
    check_net(seed, num_restarts=300)


@pytest.mark.parametrize("seed", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_with_as_many_probes_as_parameters_the_numbers_are_exact(seed):
    module, batch, loss, _, hessian = random_net(seed)
    dim = len(hessian)
    counts = []
    report = measure_geometry(
        module, [batch], loss=loss, partitions=NAMES, num_probes=256, on_hvps=counts.append
    )
    torch.testing.assert_close(report.one_one_norm, float(hessian.abs().sum()), **EXACT)
    assert report.one_one_norm_relative_error == 0.0
    exact = float(torch.linalg.eigvalsh(hessian).abs().max())
    torch.testing.assert_close(report.lambda_max, exact, rtol=1e-2, atol=0)
    assert report.num_hvps == sum(counts) == dim + len(NAMES)
    shares = hessian.abs().sum(dim=1).split([p.numel() for p in module.parameters()])
    for tensor, part in zip(report.per_tensor.values(), shares, strict=True):
        expected = float(part.sum() / hessian.abs().sum())
        torch.testing.assert_close(tensor["one_one_norm_share"], expected, **EXACT)
    for name in NAMES:
        partition, block = Partition.of(module, name), report.smoothness[name]
        found = operator_norm_by_restarts(hessian, partition)
        assert 0.99 * found <= block.lower <= found * 1.001
        assert found <= block.operator_upper * (1 + ROUNDING)
        bound = upper_bound_of_smoothness(hessian, partition)
        assert block.upper <= bound * (1 + 1e-6)
        assert block.upper_relative_error == 0.0
        assert smoothness_by_restarts(hessian, partition, 50) <= block.upper * (1 + ROUNDING)


@pytest.mark.parametrize("num_probes", [16, 256])  # 256: with the whole Hessian
def test_adaptive_smoothness_is_between_its_ends_and_grows_with_the_blocks(num_probes):
    module, batch, loss, _, hessian = random_net(4)
    report = measure_geometry(
        module, [batch], loss=loss, partitions=NAMES, num_probes=num_probes, seed=1
    )
    for name in NAMES:
        least, most = adaptive_smoothness_by_barrier(hessian, Partition.of(module, name))
        block = report.smoothness[name]
        assert 0.9 * least <= block.adaptive_lower <= most * (1 + ROUNDING), name
        assert least * (1 - ROUNDING) <= block.adaptive_upper == block.operator_upper, name
    lowers = [report.smoothness[name].adaptive_lower for name in ("coordinate", "tensor", "global")]
    assert lowers == sorted(lowers)
    assert report.smoothness["global"].adaptive_lower >= report.smoothness["global"].lower


def diagonal_closed_form(diagonal, partition):
    label = partition.expand(torch.arange(partition.num_blocks))
    return sum(
        int((label == b).sum()) * float(diagonal[label == b].abs().max()) for b in label.unique()
    )


@pytest.mark.parametrize("num_probes", [16, 64])
def test_diagonal_quadratic_has_its_closed_form_in_every_partition(num_probes):
    # N and H are both sum_b d_b max_{i in b} |h_i|.
    diagonal = normal(DIM)
    module = Quadratic(diagonal.diag())
    report = measure(module, partitions=NAMES, num_probes=num_probes)
    for name in NAMES:
        partition, block = Partition.of(module, name), report.smoothness[name]
        exact = diagonal_closed_form(diagonal, partition)
        assert 0.95 * exact <= block.lower <= exact * (1 + ROUNDING)
        assert exact <= block.operator_upper * (1 + ROUNDING)
        assert exact <= block.upper * (1 + 3 * block.upper_relative_error) * 1.02
    assert report.smoothness["coordinate"].lower == pytest.approx(float(diagonal.abs().sum()))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rank_one_quadratic_has_the_square_of_the_dual_norm_in_every_partition(sign):
    a = normal(DIM)
    module = Quadratic(sign * torch.outer(a, a))
    report = measure(module, partitions=NAMES, num_probes=64)
    for name in NAMES:
        partition, block = Partition.of(module, name), report.smoothness[name]
        exact = float(dual_block_norm(a, partition)) ** 2
        torch.testing.assert_close(block.lower, exact, **EXACT)
        # H(Phi) and its bound are the same, and the first shares are the right ones.
        torch.testing.assert_close(block.upper, exact, **EXACT)
        torch.testing.assert_close(block.operator_upper, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("num_probes", [16, 64])
def test_ends_that_meet_are_in_order_whatever_their_rounding(num_probes):
    # N is the same for all partitions, (sum of entries)^2, and so are both of its ends.
    for seed in range(8):
        a = normal(DIM).float().mean().expand(DIM)
        module = Quadratic(torch.outer(a, a))
        report = measure(module, partitions=NAMES, num_probes=num_probes, seed=seed)
        for block in report.smoothness.values():
            assert block.lower <= block.adaptive_lower <= block.operator_upper
        advantage = report.advantage["coordinate"]
        assert advantage.lower <= advantage.upper


def test_low_rank_quadratic_is_bracketed_in_every_partition():
    factor = normal(DIM, 3)
    module = Quadratic(factor @ torch.diag(torch.tensor([3.0, -2.0, 1.0])).double() @ factor.T)
    for seed in range(2):
        report = measure(module, partitions=NAMES, seed=seed)
        for name in NAMES:
            check_brackets(
                report,
                module.hessian,
                Partition.of(module, name),
                num_restarts=200,
                num_probes=16,
            )


def test_quadratic_of_separate_tensors_adds_up_over_the_tensors():
    # For "tensor" N = H = sum_b d_b max |eig H_bb|.
    order = [20, 4, 18]
    parts = [indefinite(size) for size in order]
    module = Quadratic(torch.block_diag(*parts))
    exact = sum(
        size * float(torch.linalg.eigvalsh(part).abs().max())
        for size, part in zip(order, parts, strict=True)
    )
    block = measure(module, num_probes=64).smoothness["tensor"]
    assert 0.98 * exact <= block.lower <= exact * (1 + ROUNDING)
    assert exact <= block.operator_upper * (1 + ROUNDING)
    assert exact <= block.upper * (1 + ROUNDING)


def test_linear_loss_has_zero_smoothness_and_promises_everything():
    slope = normal(DIM)
    for num_probes in (8, 64):
        report = measure(
            Quadratic(torch.zeros(DIM, DIM).double(), slope),
            partitions=NAMES,
            num_probes=num_probes,
        )
        assert report.one_one_norm == report.lambda_max == 0.0
        for name in NAMES:
            block = report.smoothness[name]
            assert block.lower == block.operator_upper == block.upper == 0.0
            assert report.decrease[name].lower == math.inf
        assert str(report)


@pytest.mark.parametrize(("seed", "max_hvps"), [(0, None), (1, 146), (2, 170), (3, 170)])
def test_ends_are_in_order_of_refinement(seed, max_hvps):
    torch.manual_seed(seed)
    scale = (1.5 * normal(DIM)).exp()
    module = Quadratic(scale[:, None] * indefinite() * scale)
    report = measure(module, partitions=NAMES, seed=seed, max_hvps=max_hvps)
    partitions = [Partition.of(module, name) for name in NAMES]
    for fine, coarse in itertools.permutations(partitions, 2):
        if fine.refines(coarse):
            below, above = report.smoothness[fine.name], report.smoothness[coarse.name]
            assert below.lower <= above.lower, (fine.name, coarse.name)
            assert below.operator_upper <= above.operator_upper, (fine.name, coarse.name)
    for block in report.smoothness.values():
        assert block.lower <= block.operator_upper
        assert block.lower <= block.upper


@pytest.mark.parametrize("num_probes", [4, 9])
def test_any_number_of_probes_gives_brackets_in_order(num_probes):
    module, batch, loss, *_ = random_net(4)
    report = measure_geometry(module, [batch], loss=loss, partitions=NAMES, num_probes=num_probes)
    for block in report.smoothness.values():
        assert 0 < block.lower <= min(block.operator_upper, block.upper)


@pytest.mark.parametrize(
    ("num_batches", "max_hvps"), [(1, 146), (1, 180), (1, None), (3, 150), (1, 500)]
)
def test_budget_is_kept_and_every_product_is_counted(num_batches, max_hvps):
    module, (x, y), loss, *_ = random_net(18)
    batches = [(x[k::num_batches], y[k::num_batches]) for k in range(num_batches)]
    counts = []
    report = measure_geometry(
        module, batches, loss=loss, partitions=NAMES, max_hvps=max_hvps, on_hvps=counts.append
    )
    # 16 probes for 5 of 6 partitions, 24 for each norm and one along each gradient
    assert report.num_hvps <= (16 * 5 + 33 * 6 if max_hvps is None else max_hvps)
    assert sum(counts) == report.num_hvps
    assert sum(b.num_hvps for b in report.smoothness.values()) + len(NAMES) == report.num_hvps
    for block in report.smoothness.values():
        assert 0 < block.lower <= min(block.operator_upper, block.upper)


def test_a_larger_budget_narrows_what_has_not_converged():
    module, batch, loss, *_ = random_net(18)
    some, many = (
        measure_geometry(module, [batch], loss=loss, max_hvps=max_hvps).smoothness["coordinate"]
        for max_hvps in (None, 300)
    )
    assert not some.converged
    assert some.num_hvps == 16 + 32 < many.num_hvps
    assert some.lower <= many.lower <= many.operator_upper < some.operator_upper


def test_budget_that_is_too_small_is_refused_by_the_least_that_will_do():
    module, batch, loss, *_ = random_net(18)
    least = 16 * 5 + 10 * 6 + 6
    options = {"loss": loss, "partitions": NAMES}
    with pytest.raises(ValueError, match="measure_geometry: expected `max_hvps` >= "):
        measure_geometry(module, [batch], **options, max_hvps=least - 1)
    measure_geometry(module, [batch], **options, max_hvps=least)


def test_message_of_a_budget_that_is_too_small_names_numbers_that_the_caller_knows():
    module, batch, loss, *_ = random_net(18)
    least = 16 * 5 + 10 * 6 + 6
    with pytest.raises(ValueError, match=f"`max_hvps` >= {least} .* got {least - 1}"):
        measure_geometry(module, [batch], loss=loss, partitions=NAMES, max_hvps=least - 1)


def test_least_budget_has_upper_ends_that_hold():
    for seed in (10, 18, 19):
        module, batch, loss, _, hessian = random_net(seed)
        report = measure_geometry(
            module, [batch], loss=loss, partitions=NAMES, max_hvps=16 * 5 + 11 * 6
        )
        for name in NAMES:
            found = operator_norm_by_restarts(hessian, Partition.of(module, name))
            assert found <= report.smoothness[name].operator_upper * 1.001, (seed, name)


@pytest.mark.parametrize("num_probes", [16, 64])  # estimated, and exact
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e19])
def test_scale_of_the_loss_scales_every_smoothness(factor, num_probes):
    matrix = indefinite().float()
    module = Quadratic(matrix)
    one = measure(module, partitions=NAMES, num_probes=num_probes)
    module.hessian = factor * matrix
    other = measure(module, partitions=NAMES, num_probes=num_probes)
    if num_probes >= DIM:
        exact = float(module.hessian.double().abs().sum())
        torch.testing.assert_close(other.one_one_norm, exact, rtol=1e-5, atol=0)
    for name in NAMES:
        for end in ("lower", "operator_upper", "upper"):
            expected = factor * getattr(one.smoothness[name], end)
            got = getattr(other.smoothness[name], end)
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=0)  # float32 stops elsewhere


def test_module_of_one_parameter():
    module = nn.Linear(1, 1, bias=False).double()
    x = torch.full((1, 1), 3.0).double()
    report = measure_geometry(module, [x], loss=lambda m, b: m(b).square().sum())
    assert report.num_params == 1
    for block in report.smoothness.values():
        torch.testing.assert_close([block.lower, block.operator_upper, block.upper], [18.0] * 3)
