"""The kernel adds what plain torch adds to the sums of products, and refuses what it refuses."""

import pytest
import torch

from lightning_linf.functional import product_sums as product_sums_module
from lightning_linf.functional.product_sums import product_sums_init, product_sums_update


def both_sums(products, sizes, monkeypatch):
    """Sums by the kernel, some of whose runs are longer than its blocks, and by plain torch."""
    monkeypatch.setattr("lightning_linf.kernels.run_logs._BLOCK", 32)
    results = []
    for runs in (product_sums_module.runs_kernels, lambda device: False):
        with monkeypatch.context() as patch:
            patch.setattr(product_sums_module, "runs_kernels", runs)
            sums = product_sums_init(sizes, 4, products)
            for probe, product in enumerate(products):
                product_sums_update(sums, product, probe, sizes)
            results.append(sums)
    return zip(*results, strict=True)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-5)]
)
@pytest.mark.parametrize("sizes", [[1], [64, 65, 3], [130, 0, 2100]])
def test_kernel_equals_plain_torch(device, monkeypatch, sizes, dtype, rtol):
    products = torch.randn(2, sum(sizes), device=device, dtype=dtype)
    for ours, expected in both_sums(products, sizes, monkeypatch):
        torch.testing.assert_close(ours, expected, rtol=rtol, atol=rtol)


def test_zero_rows_and_columns_of_a_matrix_are_right(device, monkeypatch):
    products = torch.randn(300, 2, device=device).T  # rows that are not contiguous
    products[:, 5:80] = 0.0
    products[1, 200] = 0.0
    for ours, expected in both_sums(products, [100, 200], monkeypatch):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_refused_product_leaves_the_sums_as_they_were(device, bad):
    sums = product_sums_init([50], 4, torch.ones(1, device=device))
    product = torch.ones(50, device=device)
    product[17] = bad
    with pytest.raises(ValueError, match="expected a finite product"):
        product_sums_update(sums, product, 0, [50])
    assert all(not value.any() for value in sums)
