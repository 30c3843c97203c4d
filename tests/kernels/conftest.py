"""Kernels run on a GPU where there is one, and else under Triton's interpreter on the CPU."""

import pytest
import torch

from lightning_linf.kernels import runs_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _needs_kernels():
    if not runs_kernels(DEVICE):
        pytest.skip("needs a CUDA device, or Triton's interpreter: make test-kernels")


@pytest.fixture
def device():
    return DEVICE
