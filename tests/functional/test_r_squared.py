"""Variance of log|g| between blocks against a one-way analysis of variance in NumPy."""

import math

import numpy as np
import pytest
import torch

from lightning_linf.functional import LabelledBlocks, between_within

ROUNDING = 1e-10  # of differences of float64 sums


def r_squared(gradient, blocks):
    return between_within(gradient, blocks).r_squared


def random_blocks(num_params, num_blocks):
    return numbered(torch.randint(num_blocks, (num_params,)))


def numbered(labels):
    """Blocks by labels of which some numbers may be missing."""
    return LabelledBlocks(labels.unique(return_inverse=True)[1])


def expected(gradient, labels):
    """R^2 beyond chance, by its definition."""
    values, labels = np.abs(gradient.double().numpy()), labels.numpy()
    counted = (values > 0) & np.isfinite(values)
    logs, labels = np.log(values[counted]), labels[counted]
    between = within = 0.0
    for label in np.unique(labels):
        block = logs[labels == label]
        between += len(block) * (block.mean() - logs.mean()) ** 2
        within += ((block - block.mean()) ** 2).sum()
    num_entries, num_blocks = len(logs), len(np.unique(labels))
    if num_entries == num_blocks:
        return 1.0 if num_blocks > 1 else math.nan
    inside = num_entries - num_blocks
    # Variance of log|z| for a standard normal z, and of the estimate of it: polygamma(1, 1/2) / 4,
    # and with the fourth cumulant polygamma(3, 1/2) / 16.
    variance, error = math.pi**2 / 8, math.sqrt((math.pi**4 / 16 + 2 * math.pi**4 / 64) / inside)
    chance = min(within / inside, variance + 3 * error)
    beyond = between + within - (num_entries - 1) * chance
    if num_blocks == 1:
        return 0.0
    if beyond <= 0:
        return math.nan
    return min(max((between - (num_blocks - 1) * chance) / beyond, 0.0), 1.0)


def assert_agrees(result, reference):
    torch.testing.assert_close(
        result,
        torch.tensor(reference, dtype=torch.float64),
        rtol=ROUNDING,
        atol=ROUNDING,
        equal_nan=True,
    )


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_blocks_of_equal_second_moments_explain_all(spread):
    labels = torch.arange(100).repeat_interleave(500)
    moments = torch.exp(spread * torch.randn(100))[labels]
    # What three standard errors of the chance of normal entries leave of the smallest spread.
    assert r_squared(moments * torch.randn(50_000), LabelledBlocks(labels)) > 0.95


@pytest.mark.parametrize("inside", [0.5, 1.0, 2.0])
def test_share_is_that_of_the_variance_of_second_moments(inside):
    # log of the moments: variance 4 between blocks of 1,000, `inside`^2 within them
    labels = torch.arange(200).repeat_interleave(1_000)
    logs = 2 * torch.randn(200)[labels] + inside * torch.randn(200_000)
    between = torch.stack([logs[labels == b].mean() for b in range(200)]).var()
    share = float(r_squared(logs.exp() * torch.randn(200_000), LabelledBlocks(labels)))
    # 0.01: chance is allowed three standard errors, 0.02 of a variance of 4 or more
    assert abs(share - float(between / (between + inside**2))) < 0.01


def test_equal_magnitudes_within_blocks_explain_all():
    labels = torch.arange(10).repeat_interleave(30)
    gradient = torch.rand(10)[labels] * torch.randn(300).sign()
    assert float(r_squared(gradient, LabelledBlocks(labels))) == pytest.approx(1.0)


@pytest.mark.parametrize("num_params", [3, 20, 200])
@pytest.mark.parametrize("num_blocks", [1, 2, 7, 150])
def test_shares_are_those_of_analysis_of_variance(num_params, num_blocks):
    for _ in range(20):
        blocks = random_blocks(num_params, num_blocks)
        loudness = torch.randn(num_blocks).mul(2 * torch.rand(())).exp()
        gradient = 1e-6 * torch.randn(num_params) * blocks.expand(loudness[: blocks.num_blocks])
        assert_agrees(r_squared(gradient, blocks), expected(gradient, blocks.labels))


def test_zeros_and_nonfinite_entries_are_left_out():
    blocks = random_blocks(100, 5)
    gradient = torch.randn(100)
    gradient[::7], gradient[3], gradient[4], gradient[5] = 0.0, math.inf, -math.inf, math.nan
    gradient[blocks.labels == 2] = 0.0  # a block without an entry counts for nothing
    assert_agrees(r_squared(gradient, blocks), expected(gradient, blocks.labels))
    left = (gradient != 0) & gradient.isfinite()
    same = r_squared(gradient[left], numbered(blocks.labels[left]))
    assert_agrees(same, float(r_squared(gradient, blocks)))


def test_sign_changes_nothing_and_scale_only_rounding():
    blocks, gradient = random_blocks(500, 10), torch.randn(500, dtype=torch.float64)
    gradient *= torch.exp(3 * torch.randn(500))
    one = r_squared(gradient, blocks)
    assert r_squared(-gradient, blocks) == one
    assert r_squared(gradient.abs(), blocks) == one
    for scale in (1e-30, 3.0, 1e30):
        assert_agrees(r_squared(scale * gradient, blocks), float(one))


def test_one_entry_per_block_explains_all_and_one_block_nothing():
    gradient = torch.randn(50)
    coordinate = r_squared(gradient, LabelledBlocks(torch.arange(50)))
    assert float(coordinate) == pytest.approx(1.0, abs=ROUNDING)
    whole = r_squared(gradient, LabelledBlocks(torch.zeros(50, dtype=torch.int64)))
    assert float(whole) == 0.0


def test_blocks_at_random_explain_what_chance_does():
    num_params, num_blocks, repetitions = 60, 12, 2_000
    results = []
    labels = torch.arange(num_params) % num_blocks
    for _ in range(repetitions):  # spread far beyond chance, so that no share is cut at 0
        gradient = torch.randn(num_params) * torch.exp(6 * torch.randn(num_params))
        results.append(r_squared(gradient, LabelledBlocks(labels)))
    values = torch.stack(results)
    standard_error = values.std() / repetitions**0.5
    exact = (num_blocks - 1) / (num_params - 1)
    assert (values.mean() - exact).abs() < 5 * standard_error


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1e-30, math.nan])
def test_without_variance_there_is_no_share(value):
    assert r_squared(torch.full((1_000,), value), random_blocks(1_000, 4)).isnan()


def test_nearly_equal_magnitudes_have_a_share():
    gradient = torch.tensor([1.0, 1.0, 1.0 + 1e-4, 1.0 + 1e-4], dtype=torch.float64) * 1e-6
    assert r_squared(gradient, LabelledBlocks(torch.tensor([0, 0, 1, 1]))) == 1.0


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.ones(3), r"shape \(4,\), got \(3,\)"),
        (torch.ones(2, 2), r"shape \(4,\), got \(2, 2\)"),
        (torch.ones(4, dtype=torch.complex64), r"real floating gradient, got torch.complex64"),
        (torch.ones(4, dtype=torch.int64), r"real floating gradient, got torch.int64"),
    ],
)
def test_what_cannot_be_measured_is_refused(gradient, message):
    with pytest.raises(ValueError, match=f"between_within: expected .*{message}"):
        r_squared(gradient, random_blocks(4, 2))
