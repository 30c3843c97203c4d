"""Sums over products with Cauchy probes: their dtype and size, and what they refuse."""

import pytest
import torch

from lightning_linf.functional.product_sums import (
    product_sums_init,
    product_sums_of,
    product_sums_update,
)


def test_sums_of_two_sets_of_probes_add_up():
    products = torch.randn(6, 9, dtype=torch.float64)
    products[:, 4] = 0.0
    first, second = (product_sums_init([5, 4], 6, products) for _ in range(2))
    for probe, product in enumerate(products):
        product_sums_update(first if probe < 2 else second, product, probe, [5, 4])
    for one, other, whole in zip(first, second, product_sums_of(products, [5, 4]), strict=True):
        torch.testing.assert_close(one + other, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_of_narrow_products_are_float32(dtype):
    sums = product_sums_init([3], 4, torch.ones(1, dtype=dtype))
    product_sums_update(sums, torch.ones(3, dtype=dtype), 0, [3])
    assert sums.log_sums.dtype == sums.run_log_means.dtype == torch.float32


def test_memory_of_the_sums_grows_by_at_most_64_numbers_of_each_tensor_a_probe():
    few, many = (product_sums_init([600_000, 4], n, torch.ones(1)) for n in (4, 64))
    assert sum(t.numel() for t in many) - sum(t.numel() for t in few) == 60 * (64 + 4 + 1)


def test_refused_product_leaves_the_sums_as_they_were():
    sums = product_sums_init([5], 4, torch.ones(1))
    with pytest.raises(ValueError, match="expected a finite product"):
        product_sums_update(sums, torch.full((5,), torch.nan), 0, [5])
    assert all(not value.any() for value in sums)


@pytest.mark.parametrize("num_probes", [0, 1, 3])
def test_fewer_than_four_probes_are_refused_at_the_start(num_probes):
    with pytest.raises(ValueError, match=f"expected `num_probes` >= 4 .* got {num_probes}"):
        product_sums_init([5], num_probes, torch.ones(1))
