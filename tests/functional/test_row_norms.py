"""The plain geometric-mean estimator of the (1,1)-norm and of row norms."""

import math

import pytest
import torch

from lightning_linf.functional import one_one_norm, row_norms

ROUNDING = 1e-12  # logarithms of float64 and back


def symmetric(dim):
    matrix = torch.randn(dim, dim, dtype=torch.float64)
    return matrix + matrix.T


def cauchy_products(matrix, num_probes, repeats=()):
    """Products with independent Cauchy vectors. Shape: (*repeats, num_probes, d)."""
    uniform = torch.rand(*repeats, num_probes, len(matrix), dtype=torch.float64)
    return ((uniform - 0.5) * math.pi).tan() @ matrix


@pytest.mark.parametrize("num_probes", [5, 8, 16])  # 5: the sample s.d. itself converges
def test_one_one_norm_is_unbiased(num_probes):
    matrix = symmetric(5)
    estimates = torch.stack(
        [one_one_norm(products) for products in cauchy_products(matrix, num_probes, (4_000,))]
    )
    standard_error = estimates.std() / len(estimates) ** 0.5
    assert (estimates.mean() - matrix.abs().sum()).abs() < 5 * standard_error


@pytest.mark.parametrize("num_probes", [5, 9])
def test_row_norms_are_unbiased_row_by_row(num_probes):
    matrix = symmetric(5)
    estimates = torch.stack(
        [row_norms(products) for products in cauchy_products(matrix, num_probes, (4_000,))]
    )
    standard_errors = estimates.std(dim=0) / len(estimates) ** 0.5
    assert ((estimates.mean(dim=0) - matrix.abs().sum(dim=1)).abs() < 5 * standard_errors).all()


@pytest.mark.parametrize("k", [16, 64])
def test_spread_of_one_row_norm_is_that_of_the_moments(k):
    # One row: nothing averages out. E|c|^p = 1 / cos(p pi / 2) for a Cauchy c; here p = 1/k, 2/k.
    products = cauchy_products(torch.eye(1, dtype=torch.float64), k, (4_000,))
    estimates = torch.stack([row_norms(p) for p in products])
    variance = math.cos(math.pi / (2 * k)) ** (2 * k) / math.cos(math.pi / k) ** k - 1
    assert 1.5 < (variance * k) ** 0.5 < 1.8  # "about 1.6 / sqrt(k)"
    # Five times the error of a nearly normal s.d. from 4,000 draws is 6 %; skewness adds to it.
    expected = torch.tensor(variance, dtype=torch.float64).sqrt()
    torch.testing.assert_close(estimates.std(), expected, rtol=0.1, atol=0)


def test_one_one_norm_is_the_sum_of_the_row_norms():
    products = cauchy_products(symmetric(20), 7)
    torch.testing.assert_close(
        one_one_norm(products), row_norms(products).sum(), rtol=ROUNDING, atol=0
    )


@pytest.mark.parametrize("factor", [-3.7, 2.0**-30, 1e-9, 1e12])
def test_one_one_norm_is_homogeneous_with_the_same_probes(factor):
    products = cauchy_products(symmetric(20), 7)
    torch.testing.assert_close(
        one_one_norm(factor * products), abs(factor) * one_one_norm(products), rtol=ROUNDING, atol=0
    )


def test_order_of_rows_and_of_probes_does_not_matter():
    products = cauchy_products(symmetric(20), 7)
    rows, probes = torch.randperm(20), torch.randperm(7)
    torch.testing.assert_close(
        row_norms(products[probes][:, rows]), row_norms(products)[rows], rtol=ROUNDING, atol=0
    )
    torch.testing.assert_close(
        one_one_norm(products[probes][:, rows]), one_one_norm(products), rtol=ROUNDING, atol=0
    )


def test_row_of_zeros_adds_nothing():
    matrix = symmetric(20)
    matrix[3] = matrix[:, 3] = 0.0
    products = cauchy_products(matrix, 7)
    norms = row_norms(products)
    assert norms[3] == 0.0
    others = torch.arange(20) != 3
    torch.testing.assert_close(
        one_one_norm(products), one_one_norm(products[:, others]), rtol=ROUNDING, atol=0
    )


def test_zero_matrix_has_norm_zero():
    assert one_one_norm(torch.zeros(5, 4)) == 0.0


def test_dtype_of_the_products_is_kept():
    assert one_one_norm(torch.ones(5, 4)).dtype == torch.float32
    assert one_one_norm(torch.ones(5, 4, dtype=torch.float64)).dtype == torch.float64


def test_equal_products_give_their_magnitude_times_the_debiasing_factor():
    k = 6
    estimate = one_one_norm(torch.full((k, 3), -2.0, dtype=torch.float64))
    expected = 3 * 2.0 * math.cos(math.pi / (2 * k)) ** k
    torch.testing.assert_close(
        estimate, torch.tensor(expected, dtype=torch.float64), rtol=ROUNDING, atol=0
    )


@pytest.mark.parametrize("estimator", [one_one_norm, row_norms])
@pytest.mark.parametrize("shape", [(5,), (), (2, 5, 3)])
def test_products_of_a_wrong_shape_are_refused(estimator, shape):
    with pytest.raises(ValueError, match=r"one_one_norm: expected `products` of shape \(k, d\)"):
        estimator(torch.ones(shape))


@pytest.mark.parametrize("num_probes", [0, 1, 2])
@pytest.mark.parametrize("estimator", [one_one_norm, row_norms])
def test_fewer_than_three_probes_are_refused(estimator, num_probes):
    with pytest.raises(ValueError, match=f"expected at least 3 probes, got {num_probes}"):
        estimator(torch.ones(num_probes, 4))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("estimator", [one_one_norm, row_norms])
def test_products_that_are_not_finite_are_refused(estimator, bad):
    products = torch.ones(5, 4)
    products[2, 1] = bad
    with pytest.raises(ValueError, match="expected finite `products`, got inf or NaN"):
        estimator(products)
