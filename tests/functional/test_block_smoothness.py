"""The bound of blockwise smoothness: law of its probes, error on dense matrices, exact laws."""

import math
from typing import NamedTuple

import pytest
import torch
from support.networks import partition_of, upper_bound_of_smoothness
from torch import Tensor

from lightning_linf.functional import block_cauchy, block_smoothness
from lightning_linf.functional.block_smoothness import block_smoothness_compute
from lightning_linf.functional.product_sums import product_sums_init, product_sums_update

ROUNDING = 1e-9  # of float64 logarithms and sums
DIM = 200
NUM_SEEDS = 40
NUM_PROBES = 16


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def symmetric(dim):
    matrix = normal(dim, dim)
    return matrix + matrix.T


def low_rank(dim):
    factor = normal(dim, 4) * normal(dim, 4).exp()
    return (factor * torch.tensor([4.0, -2.0, 1.0, 0.5], dtype=torch.float64)) @ factor.T


def heavy_tailed(dim):
    matrix = normal(dim, dim) * (1.5 * normal(dim, dim)).exp()
    return matrix + matrix.T


def with_zero_rows(dim):
    zeros = torch.zeros(dim // 3, dim // 3, dtype=torch.float64)
    return torch.block_diag(zeros, symmetric(dim - dim // 3))


MATRICES = {make.__name__: make for make in (symmetric, low_rank, heavy_tailed, with_zero_rows)}


def with_lone_entries(dim):
    labels = torch.arange(dim)
    return torch.where(labels < dim // 2, labels, dim + labels // 20)


PARTITIONS = {
    "rows": lambda dim: torch.arange(dim) // 10,
    "ragged": lambda dim: torch.randint(dim // 6, (dim,)),
    "tensors": lambda dim: torch.bucketize(torch.arange(dim), torch.tensor([80, 90, 150, 185])),
    "half lone": with_lone_entries,
}


EVERYDAY = ("ragged", "tensors", "half lone")


def products_of(matrix, partition, seed, num_probes=NUM_PROBES):
    probes = [block_cauchy(partition, seed=seed, probe=k, like=matrix) for k in range(num_probes)]
    return torch.stack(probes) @ matrix


def plain_mean(products, partition):
    """Return the bound from geometric means of each row, corrected as those of rows alone are."""
    num_probes = len(products)
    debias = math.cos(math.pi / (2 * num_probes)) ** num_probes
    scales = debias * products.abs().log().mean(dim=0).exp()
    norms = partition.block_sum(scales.square()).sqrt()
    return float(norms @ partition.sizes(norms).sqrt())


def largest_gap(sample):
    """Distance of the sample's distribution function from that of |c|, c standard Cauchy."""
    count = len(sample)
    exact = 2 / math.pi * sample.abs().sort().values.atan()
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    return float(torch.maximum((steps[1:] - exact).abs(), (exact - steps[:-1]).abs()).max())


@pytest.mark.parametrize("kind", [*PARTITIONS, "coordinate"])
def test_product_of_a_probe_with_a_vector_is_cauchy_of_the_stated_scale(kind):
    dim, count = 60, 1500
    labels = torch.arange(dim) if kind == "coordinate" else PARTITIONS[kind](dim)
    partition = partition_of(labels)
    a = normal(dim) * normal(dim).exp()
    norms = partition.block_sum(a.square()).sqrt()
    scale = norms @ partition.sizes(norms).sqrt()
    products = torch.stack(
        [block_cauchy(partition, seed=1, probe=k, like=a) @ a for k in range(count)]
    )
    # Kolmogorov-Smirnov: a true law exceeds 1.95 / sqrt(n) with probability 0.001.
    assert largest_gap(products / scale) < 1.95 / count**0.5
    assert 0.45 < float((products > 0).double().mean()) < 0.55  # 4 standard errors


def test_blocks_of_one_entry_are_independent_standard_cauchy():
    draws = torch.stack(
        [
            block_cauchy(partition_of(torch.arange(40)), seed=0, probe=k, like=normal(1))
            for k in range(200)
        ]
    )
    assert largest_gap(draws.flatten()) < 1.95 / draws.numel() ** 0.5
    signs = draws.sign()
    correlation = (signs.T @ signs) / len(draws) - torch.eye(40)
    assert float(correlation.abs().max()) < 5 / len(draws) ** 0.5  # 780 pairs: 5 s.d.


def test_a_block_points_in_all_directions_alike():
    partition = partition_of(torch.arange(30) // 10)
    draws = torch.stack(
        [block_cauchy(partition, seed=0, probe=k, like=normal(1)) for k in range(2000)]
    )
    units = torch.nn.functional.normalize(draws.unflatten(1, (3, 10)), dim=-1)
    # Each square has mean 1/10 and s.d. 0.13; products of blocks have mean 0.
    torch.testing.assert_close(
        units.square().mean(dim=0), torch.full((3, 10), 0.1).double(), rtol=0, atol=0.015
    )
    assert float((units[:, 0, :, None] * units[:, 1, None, :]).mean(dim=0).abs().max()) < 0.012


def test_probes_are_drawn_again_by_seed_and_number():
    partition, like = partition_of(torch.arange(30) // 4), normal(1)
    one = block_cauchy(partition, seed=3, probe=5, like=like)
    assert torch.equal(one, block_cauchy(partition, seed=3, probe=5, like=like))
    for seed, probe in ((3, 6), (4, 5), (5, 3)):
        assert not torch.equal(one, block_cauchy(partition, seed=seed, probe=probe, like=like))


def test_probes_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    block_cauchy(partition_of(torch.arange(30) // 4), seed=3, probe=5, like=normal(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probes_have_the_dtype_asked_for(dtype):
    probe = block_cauchy(
        partition_of(torch.arange(30) // 4), seed=0, probe=0, like=torch.empty(0, dtype=dtype)
    )
    assert probe.dtype == dtype
    assert probe.isfinite().all()


class Errors(NamedTuple):
    """Relative errors on the same products, one entry a seed."""

    ours: Tensor
    stated: Tensor
    plain: Tensor


def relative_errors(matrix, partition, num_probes, num_seeds):
    exact = upper_bound_of_smoothness(matrix, partition)
    rows = []
    for seed in range(num_seeds):
        products = products_of(matrix, partition, seed, num_probes)
        estimate = block_smoothness(products, partition, seed=seed)
        ours = float(estimate.value) / exact - 1
        plain = plain_mean(products, partition) / exact - 1
        rows.append([ours, float(estimate.relative_error), plain])
    return Errors(*torch.tensor(rows, dtype=torch.float64).T)


def rms(values):
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("kind", [pytest.param("rows", marks=pytest.mark.slow), *EVERYDAY])
@pytest.mark.parametrize("name", MATRICES)
def test_bias_is_small_the_error_below_the_plain_mean_and_as_stated(name, kind):
    matrix, partition = MATRICES[name](DIM), partition_of(PARTITIONS[kind](DIM))
    errors = relative_errors(matrix, partition, NUM_PROBES, NUM_SEEDS)
    standard_error = float(errors.ours.std()) / NUM_SEEDS**0.5
    # 0.03: what the second order leaves at 16 probes.
    assert abs(float(errors.ours.mean())) < 4 * standard_error + 0.03
    assert 1.5 * rms(errors.ours) < rms(errors.plain)
    assert 0.5 < float(errors.stated.mean() / errors.ours.std()) < 1.6


@pytest.mark.slow
@pytest.mark.parametrize("num_probes", [4, 7, 33])
@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize("name", MATRICES)
def test_laws_of_the_error_hold_at_other_numbers_of_probes(name, kind, num_probes):
    matrix, partition = MATRICES[name](DIM), partition_of(PARTITIONS[kind](DIM))
    errors = relative_errors(matrix, partition, num_probes, 80)
    standard_error = float(errors.ours.std()) / 80**0.5
    assert abs(float(errors.ours.mean())) < 4 * standard_error + 0.48 / num_probes
    assert 1.3 * rms(errors.ours) < rms(errors.plain)
    # Two stated errors cover 90 to 99 %, which with few probes takes Student's t.
    student = {2: 4.3027, 3.5: 2.9401, 16.5: 2.1147}[num_probes / 2]
    assert 0.5 < float(errors.stated.median() * 1.96 / student / errors.ours.std()) < 1.6
    z = errors.ours / (1 + errors.ours) / errors.stated
    assert float((z.abs() < 2).double().mean()) > 0.90 - 0.07  # 2 s.d. of 80 seeds


@pytest.mark.parametrize("size", [5, 30])
def test_blocks_that_share_nothing_keep_the_error_and_the_bias_of_their_own(size):
    matrix = torch.block_diag(*(symmetric(size) for _ in range(600 // size)))
    partition = partition_of(torch.arange(600) // size)
    errors = relative_errors(matrix, partition, NUM_PROBES, NUM_SEEDS)
    standard_error = float(errors.ours.std()) / NUM_SEEDS**0.5
    assert abs(float(errors.ours.mean())) < 4 * standard_error + 0.02
    # Full weight to the surrogates would leave 0.25, their own error.
    assert rms(errors.ours) < 1.1 * rms(errors.plain) < 0.1
    z = errors.ours / errors.stated
    assert float((z.abs() < 2).double().mean()) > 0.85


@pytest.mark.parametrize("kind", [*PARTITIONS, "coordinate"])
def test_many_probes_give_the_bound(kind):
    labels = torch.arange(80) if kind == "coordinate" else PARTITIONS[kind](80)
    matrix, partition = symmetric(80), partition_of(labels)
    estimate = block_smoothness(products_of(matrix, partition, 0, 600), partition, seed=0)
    exact = upper_bound_of_smoothness(matrix, partition)
    # 2 %: 4 s.d. of the surrogates' own noise at 600 probes, and the stated error besides
    assert abs(float(estimate.value) / exact - 1) < 0.02 + 3 * float(estimate.relative_error)


def test_coordinate_partition_estimates_the_one_one_norm():
    matrix = symmetric(DIM)
    partition = partition_of(torch.arange(DIM))
    torch.testing.assert_close(
        upper_bound_of_smoothness(matrix, partition), float(matrix.abs().sum())
    )
    errors = relative_errors(matrix, partition, NUM_PROBES, NUM_SEEDS)
    assert abs(float(errors.ours.mean())) < 4 * float(errors.ours.std()) / NUM_SEEDS**0.5 + 0.03
    assert 1.5 * rms(errors.ours) < rms(errors.plain)


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize("name", MATRICES)
def test_parts_of_blocks_and_of_tensors_add_up_to_the_value(name, kind):
    matrix, partition = MATRICES[name](DIM), partition_of(PARTITIONS[kind](DIM))
    sizes = [81, 10, 60, 35, 14]
    estimate = block_smoothness(products_of(matrix, partition, 0), partition, seed=0, sizes=sizes)
    assert estimate.block_parts.shape == (partition.num_blocks,)
    assert estimate.tensor_parts.shape == (5,)
    for parts in (estimate.block_parts, estimate.tensor_parts):
        assert (parts >= 0).all()
        torch.testing.assert_close(parts.sum(), estimate.value, rtol=ROUNDING, atol=0)
    if kind == "tensors":  # the blocks are the tensors
        torch.testing.assert_close(
            estimate.block_parts, estimate.tensor_parts, rtol=ROUNDING, atol=1e-12
        )


def test_parts_are_those_of_the_bound():
    matrix, partition = symmetric(80), partition_of(torch.arange(80) // 10)
    matrix[:10] *= 9
    matrix[:, :10] *= 9
    estimate = block_smoothness(products_of(matrix, partition, 0, 600), partition, seed=0)
    norms = partition.block_sum(matrix.square()).sqrt() @ partition.sizes(matrix).sqrt()
    exact = (10 * partition.block_sum(norms.square())).sqrt()
    # 15 %: 4 s.d. of the mean of 10 rows of 600 probes, most of whose error they share
    torch.testing.assert_close(estimate.block_parts, exact, rtol=0.15, atol=0)


def test_zero_rows_add_nothing():
    matrix = with_zero_rows(60)
    partition = partition_of(torch.arange(60) // 10)
    estimate = block_smoothness(
        products_of(matrix, partition, 0), partition, seed=0, sizes=[20, 40]
    )
    assert estimate.block_parts[:2].tolist() == [0.0, 0.0]
    assert float(estimate.tensor_parts[0]) == 0.0
    assert float(estimate.value) > 0


@pytest.mark.parametrize("factor", [2.0**60, -(2.0**-60), -1.0])
@pytest.mark.parametrize("kind", PARTITIONS)
def test_value_is_absolutely_homogeneous(kind, factor):
    matrix, partition = symmetric(60), partition_of(PARTITIONS[kind](60))
    products = products_of(matrix, partition, 0)
    one = block_smoothness(products, partition, seed=0)
    other = block_smoothness(factor * products, partition, seed=0)
    torch.testing.assert_close(other.value, abs(factor) * one.value, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(other.relative_error, one.relative_error, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e15])
def test_float32_agrees_with_float64_at_any_scale(factor):
    matrix, partition = symmetric(60), partition_of(torch.arange(60) // 7)
    products = products_of(matrix, partition, 0)
    double = block_smoothness(products, partition, seed=0)
    single = block_smoothness((factor * products).float(), partition, seed=0)
    assert single.value.dtype == torch.float32
    # The surrogates are other draws in float32, so only to their own noise.
    torch.testing.assert_close(single.value.double() / factor, double.value, rtol=0.1, atol=0)
    assert single.block_parts.isfinite().all()


def test_zero_matrix_has_zero_bound_and_no_error():
    estimate = block_smoothness(
        torch.zeros(8, 20), partition_of(torch.arange(20) // 3), seed=0, sizes=[15, 5]
    )
    assert float(estimate.value) == float(estimate.relative_error) == 0.0
    assert estimate.block_parts.tolist() == [0.0] * 7
    assert estimate.tensor_parts.tolist() == [0.0] * 2


def test_one_row_that_is_not_zero_is_enough():
    matrix = torch.zeros(20, 20, dtype=torch.float64)
    matrix[4, 4] = 3.0
    partition = partition_of(torch.arange(20) // 5)
    estimate = block_smoothness(products_of(matrix, partition, 0, 64), partition, seed=0)
    # sqrt(5) * sqrt(5) * 3, from one block's 64 radii: one row of a known law, s.d. 1.6 / 8
    assert 15 / 2.5 < float(estimate.value) < 15 * 2.5
    assert math.isfinite(float(estimate.relative_error))


@pytest.mark.parametrize("num_probes", [0, 1, 3])
def test_fewer_than_four_products_are_refused(num_probes):
    with pytest.raises(ValueError, match=f"expected `num_probes` >= 4 .* got {num_probes}"):
        block_smoothness(torch.ones(num_probes, 6), partition_of(torch.arange(6) // 2), seed=0)


@pytest.mark.parametrize("shape", [(), (6,), (8, 5), (8, 7), (2, 4, 6)])
def test_products_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"block_smoothness: expected `products` of shape \(n, 6\)"
    ):
        block_smoothness(torch.ones(shape), partition_of(torch.arange(6) // 2), seed=0)


@pytest.mark.parametrize("sizes", [[5], [4, 4], []])
def test_sizes_that_do_not_add_up_are_refused(sizes):
    with pytest.raises(ValueError, match=rf"expected a product of shape \({sum(sizes)},\), got"):
        block_smoothness(torch.ones(4, 6), partition_of(torch.arange(6) // 2), seed=0, sizes=sizes)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_products_that_are_not_finite_are_refused(bad):
    products = torch.ones(4, 6)
    products[2, 1] = bad
    with pytest.raises(ValueError, match="expected a finite product for probe 2, got inf or NaN"):
        block_smoothness(products, partition_of(torch.arange(6) // 2), seed=0)


@pytest.mark.parametrize("probes", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 3, 1], []])
def test_probes_that_are_missing_or_repeated_are_refused(probes):
    sums = product_sums_init([6], 4, torch.ones(1))
    for probe in probes:
        product_sums_update(sums, torch.ones(6), probe, [6])
    with pytest.raises(ValueError, match=r"block_smoothness: expected each of the 4 probes once"):
        block_smoothness_compute(sums, [6], partition_of(torch.arange(6) // 2), seed=0)
