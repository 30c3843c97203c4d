"""The same numbers, and the same bits of training, on a CUDA device."""

import networks
import pytest
import test_bit_identity as bit_identity
import torch

from lightning_linf.functional import cauchy, heterogeneity
from lightning_linf.probe import Landscape, measure_geometry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    bit_identity.pytestmark,
]


def moved(batch):
    return batch.cuda() if isinstance(batch, torch.Tensor) else tuple(t.cuda() for t in batch)


@pytest.mark.parametrize("name", networks.ALL)
def test_products_equal_those_of_the_cpu(name):
    module, batch, loss = networks.ALL[name]()
    with Landscape(module, [batch], loss=loss) as landscape:
        vector = torch.randn(landscape.parameters.num_params, dtype=torch.float64)
        expected = landscape.hvp(vector)
    with Landscape(module.cuda(), [moved(batch)], loss=loss) as landscape:
        product = landscape.hvp(vector.cuda()).cpu()
    result = measure_geometry(module, [moved(batch)], loss=loss, num_probes=8)
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-10)
    assert result.one_one_norm > 0


def test_heterogeneity_equals_that_of_the_cpu():
    gradient = torch.randn(10_000).exp() * torch.randn(10_000)
    for ours, expected in zip(heterogeneity(gradient.cuda()), heterogeneity(gradient), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-12, atol=0.0)


def test_far_tails_of_cauchy_probes_are_there():
    draws = cauchy(10_000_000, seed=0, probe=0, device="cuda").abs()
    # P(|c| > 1e6) = 6.4e-7: 6.4 expected, and none at all has a chance of 0.002
    assert (draws > 1e6).any()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_with_monitors_is_bit_identical(tmp_path, precision, monkeypatch):
    torch.use_deterministic_algorithms(True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        traces = [
            bit_identity.trace(
                *bit_identity.train(
                    tmp_path, callbacks, accelerator="cuda", devices=1, precision=precision
                )
            )
            for callbacks in (bit_identity.monitors(), [])
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    bit_identity.assert_same(*traces)
