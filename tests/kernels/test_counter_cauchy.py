"""The kernel writes what plain torch writes, whatever the dtype, the size and the counters."""

import pytest
import torch

from lightning_linf.functional import random as random_module
from lightning_linf.functional.random import cauchy


@pytest.fixture
def plain(monkeypatch):
    """Draw in plain torch."""

    def draw(*arguments, **named):
        with monkeypatch.context() as patch:
            patch.setattr(random_module, "runs_kernels", lambda device: False)
            return cauchy(*arguments, **named)

    return draw


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    # Rounding of a tangent against that of a sine over a cosine.
    [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)],
)
@pytest.mark.parametrize("dim", [0, 1, 1023, 1025, 5000])
def test_kernel_equals_plain_torch(device, plain, dim, dtype, rtol):
    ours = cauchy(dim, seed=1, probe=2, dtype=dtype, device=device)
    expected = plain(dim, seed=1, probe=2, dtype=dtype, device=device)
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("first", [1, (1 << 31) - 10, (1 << 32) - 100, (5 << 32) + 3])
def test_parts_are_those_of_plain_torch(device, plain, first):
    ours = cauchy(300, seed=-4, probe=0, first=first, device=device)
    torch.testing.assert_close(
        ours, plain(300, seed=-4, probe=0, first=first, device=device), rtol=1e-6, atol=0
    )


def test_far_tails_are_exact(device, plain):
    ours = cauchy(1 << 18, seed=9, probe=0, device=device)
    expected = plain(1 << 18, seed=9, probe=0, dtype=torch.float64, device=device)
    assert ours.abs().max() > 1e5
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)
