"""Permutations that are drawn in parts."""

import pytest
import torch

from lightning_linf.functional.permutation import permuted

SIZES = [0, 1, 2, 100, 65_536, 65_537, 100_003]


@pytest.mark.parametrize("size", SIZES)
def test_every_number_comes_once_and_the_inverse_takes_it_back(size):
    images = permuted(0, size, size=size, seed=3)
    assert images.dtype == torch.int64
    assert torch.equal(images.sort().values, torch.arange(size))
    back = permuted(0, size, size=size, seed=3, inverse=True)
    assert torch.equal(back[images], torch.arange(size))
    assert size < 100 or not torch.equal(images, permuted(0, size, size=size, seed=4))


@pytest.mark.parametrize("size", [100, 100_003])
def test_parts_are_those_of_the_whole_and_nobody_can_change_them(size):
    whole = permuted(0, size, size=size, seed=3)
    for inverse, expected in ((False, whole), (True, whole.argsort())):
        part = permuted(size // 3, size // 2, size=size, seed=3, inverse=inverse)
        assert torch.equal(part, expected[size // 3 : size // 3 + size // 2])
        part.zero_()
    assert torch.equal(permuted(0, size, size=size, seed=3), whole)


def test_small_permutations_are_those_of_the_generator_of_torch():
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(
        permuted(0, 1_000, size=1_000, seed=5), torch.randperm(1_000, generator=generator)
    )


def test_large_permutations_look_random():
    size, num_bins = 200_003, 20
    numbers = torch.arange(size)
    images = permuted(0, size, size=size, seed=1)

    def excess(a, b):
        """Chi-squared of pairs of bins, in standard deviations above its mean."""
        bins = (a * num_bins // size) * num_bins + b * num_bins // size
        counts = torch.bincount(bins, minlength=num_bins**2).double()
        expected = len(bins) / num_bins**2
        freedom = num_bins**2 - 1
        chi2 = ((counts - expected) ** 2 / expected).sum()
        return float((chi2 - freedom) / (2 * freedom) ** 0.5)

    # Images against numbers, against those of neighbours, and modulo the side of the square.
    assert excess(numbers, images) < 4
    assert excess(images[1:], images[:-1]) < 4
    assert excess(images[448:], images[:-448]) < 4
    assert abs(int((images == numbers).sum()) - 1) < 5  # a Poisson number of mean 1
