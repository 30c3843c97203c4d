"""Same numbers every time: every test starts from the same seeds."""

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # what third-party code draws from
