"""Same numbers every time: every test starts from the same seeds, and draws the same examples."""

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile(
    "same every time",
    derandomize=True,
    deadline=None,  # a busy machine is slow
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same every time")

for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)  # of the terminal at which the tests were started

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # what third-party code draws from


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
