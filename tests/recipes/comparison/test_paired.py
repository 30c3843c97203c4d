import math

import numpy as np
import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
from scipy.stats import ttest_1samp

from comparison.paired import paired


def test_the_interval_is_that_of_students_test():
    differences = np.random.default_rng(0).normal(0.3, 1.0, size=7)
    found = paired(list(differences))
    expected = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(differences.mean())
    assert found.is_told_apart == (ttest_1samp(differences, 0.0).pvalue < 0.05)


def test_by_hand():
    found = paired([1.0, 2.0, 3.0])  # t of 2 degrees of freedom is 4.303, the error 1 / sqrt(3)
    assert (found.lower, found.upper) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert str(found) == "+2.000 (-0.484 to +4.484)"
    assert not found.is_told_apart
    assert paired([-1.0, -1.01, -1.02]).is_told_apart


def test_one_seed_tells_nothing():
    found = paired([5.0])
    assert (found.mean, found.lower, found.upper) == (5.0, -math.inf, math.inf)
    assert not found.is_told_apart
