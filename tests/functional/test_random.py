"""Seeded draws: they repeat, differ where they should, and have the right distribution."""

import math
from functools import partial

import pytest
import torch

from lightning_linf.functional import cauchy
from lightning_linf.functional import random as random_module
from lightning_linf.functional.random import (
    chunk_size,
    chunks,
    derive_seed,
    inverse_normals,
    laplace,
    normal,
)

CPU = torch.device("cpu")
CHUNK = chunk_size(CPU)
# sqrt(N) times the largest distance of the empirical from the true distribution function exceeds
# this with probability 2 exp(-2 * 2.5^2) = 7e-6.
KOLMOGOROV = 2.5


def largest_distance(values, distribution_function):
    """Kolmogorov-Smirnov distance between sorted draws and a distribution function."""
    values = values.double().sort().values
    exact = distribution_function(values)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return float(torch.maximum((exact - steps[:-1]).abs(), (exact - steps[1:]).abs()).max())


def cauchy_distribution_function(values):
    return 0.5 + values.atan() / math.pi


def probability_beyond(threshold):
    return 2 / math.pi * math.atan(1 / threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 17, CHUNK, CHUNK + 1])
def test_cauchy_draws_repeat(dim, dtype):
    first = cauchy(dim, seed=3, probe=5, dtype=dtype)
    assert first.shape == (dim,)
    assert first.dtype == dtype
    assert first.isfinite().all()
    assert torch.equal(cauchy(dim, seed=3, probe=5, dtype=dtype), first)


def test_float32_draws_are_float64_draws_rounded_so_that_their_tails_are_as_long():
    single, double = (
        cauchy(CHUNK, seed=0, probe=0, dtype=t) for t in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


def test_cauchy_draws_differ_between_seeds_and_probes_and_chunks():
    draws = [cauchy(100, seed=seed, probe=probe) for seed in range(4) for probe in range(4)]
    draws.append(cauchy(CHUNK + 100, seed=0, probe=0)[CHUNK:])
    for i, first in enumerate(draws):
        for second in draws[:i]:
            assert not (first == second).any()


def test_cauchy_follows_its_distribution_function():
    for probe in range(4):
        values = cauchy(1 << 18, seed=1, probe=probe, dtype=torch.float64)
        distance = largest_distance(values, cauchy_distribution_function)
        assert distance < KOLMOGOROV / len(values) ** 0.5


@pytest.mark.parametrize("threshold", [10.0, 1e3, 1e4])
def test_cauchy_has_its_far_tails_on_both_sides(threshold):
    num_draws, above, below = 1 << 22, 0, 0
    for probe in range(4):
        values = cauchy(num_draws // 4, seed=2, probe=probe)
        above += int((values > threshold).sum())
        below += int((values < -threshold).sum())
    expected = num_draws * probability_beyond(threshold) / 2  # 1.3e5, 1.3e3 and 134 a side
    for count in (above, below):
        assert abs(count - expected) < 5 * expected**0.5  # five Poisson standard errors


def test_largest_of_many_draws_is_as_large_as_it_should_be():
    # The largest of N exceeds 2 N / pi / 12 with probability 1 - exp(-12), and 1e4 times that with
    # probability 1e-3.
    num_draws = 1 << 21
    largest = float(cauchy(num_draws, seed=3, probe=0).abs().max())
    assert num_draws / 6 / math.pi < largest < 1e4 * num_draws


def test_cauchy_entries_are_drawn_with_more_than_the_24_bits_of_float32():
    # With 24 bits some 2,000 of these pairs would be equal, and tails would end near 1e7.
    values = cauchy(1 << 18, seed=5, probe=0, dtype=torch.float64)
    assert len(values.unique()) == len(values)


def test_probes_are_independent_of_each_other():
    first, second = (cauchy(1 << 18, seed=4, probe=probe).sign() for probe in (0, 1))
    assert abs(float((first * second).mean())) < 5 / (1 << 18) ** 0.5
    neighbours = first[1:] * first[:-1]
    assert abs(float(neighbours.mean())) < 5 / len(neighbours) ** 0.5


@pytest.mark.parametrize("dim", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_cover_the_range_once_and_in_order(dim):
    parts = list(chunks(dim, CPU))
    assert len(parts) == math.ceil(dim / CHUNK)
    assert torch.equal(torch.cat([torch.arange(dim)[part] for part in parts]), torch.arange(dim))
    assert max(part.stop - part.start for part in parts) <= CHUNK


def test_no_entries_make_no_chunk():
    assert list(chunks(0, CPU)) == []
    assert cauchy(0, seed=0, probe=0).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [0, 1, CHUNK - 3, (1 << 32) - 50, 7 << 32])
def test_parts_of_a_vector_are_the_same_numbers(first, dtype):
    draw = partial(cauchy, seed=7, probe=2, dtype=dtype)
    whole = draw(100, first=first)
    assert torch.equal(torch.cat([draw(30, first=first), draw(70, first=first + 30)]), whole)
    assert torch.equal(draw(1, first=first + 99), whole[99:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 7, 1000, 2 * CHUNK + 3])
def test_stretches_of_normal_vectors_are_those_of_the_whole(dim, dtype):
    whole = normal(dim, seed=3, dtype=dtype)
    for start, stop in torch.randint(dim + 1, (20, 2)).sort().values.tolist():
        part = normal(stop - start, seed=3, first=start, whole=dim, dtype=dtype)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("chunk", [1, 64, 1 << 24])
def test_draws_do_not_depend_on_the_size_of_chunks(monkeypatch, chunk):
    def draw():
        return (
            cauchy(200, seed=1, probe=0),
            normal(201, seed=1),
            laplace(200, seed=1, dtype=torch.float32, device=CPU),
            inverse_normals(200, seed=1, probe=0, first=0, like=torch.empty(0)),
        )

    before = draw()
    monkeypatch.setattr(random_module, "_CPU_CHUNK", chunk)
    for one, other in zip(before, draw(), strict=True):
        # A vectorised function and the one for what is left over differ in the last digit.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_pages_of_counters_do_not_repeat():
    draws = [cauchy(100, seed=0, probe=0, first=page << 32) for page in range(3)]
    assert not (draws[0] == draws[1]).any()
    assert not (draws[1] == draws[2]).any()


def test_signs_and_logarithms_are_independent_at_every_lag():
    values = cauchy(1 << 20, seed=6, probe=0)
    logs = values.abs().log() / (math.pi / 2)  # of variance 1
    for series in (values.sign(), logs):
        for lag in (1, 2, 3, 16, 255, 256, 768, 1024, 4096, 50_304, 1 << 16, 1 << 17, 1 << 19):
            correlation = float((series[lag:] * series[:-lag]).mean())
            assert abs(correlation) < 5 / (len(series) - lag) ** 0.5, lag


def test_extremes_are_as_far_and_as_many_on_both_sides():
    values = cauchy(1 << 22, seed=8, probe=0).sort().values
    expected = (1 << 22) / math.pi / 1e5  # 13 a side beyond 1e5
    for extreme in (values > 1e5, values < -1e5):
        assert abs(int(extreme.sum()) - expected) < 5 * expected**0.5
    assert values.isfinite().all()


def draw_laplace(*, rows=64, size=5_000, seed=0, first=0, dtype=torch.float64):
    return laplace(rows * size, seed=seed, first=first, dtype=dtype, device=CPU).view(rows, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laplace_draws_repeat_and_differ_between_seeds_and_places(dtype):
    first = draw_laplace(dtype=dtype)
    assert first.shape == (64, 5_000)
    assert first.dtype == dtype
    assert torch.equal(draw_laplace(dtype=dtype), first)
    for other in (draw_laplace(dtype=dtype, seed=1), draw_laplace(dtype=dtype, first=1)):
        assert not (other == first).any()
    assert not (first[0] == first[1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laplace_has_mean_zero_and_mean_magnitude_one(dtype):
    values = draw_laplace(dtype=dtype).double()
    error = values.numel() ** -0.5
    assert abs(float(values.mean())) < 5 * 2**0.5 * error  # its variance is 2
    assert abs(float(values.abs().mean()) - 1) < 5 * error  # that of the magnitude is 1


def test_laplace_follows_its_distribution_function():
    values = draw_laplace().reshape(-1)
    distance = largest_distance(
        values, lambda x: torch.where(x < 0, x.exp() / 2, 1 - (-x.abs()).exp() / 2)
    )
    assert distance < KOLMOGOROV / len(values) ** 0.5


def test_normal_follows_its_distribution_function_and_pairs_are_independent():
    values = normal(1 << 18, seed=4, dtype=torch.float64)
    distance = largest_distance(values, lambda x: (1 + (x / 2**0.5).erf()) / 2)
    assert distance < KOLMOGOROV / len(values) ** 0.5
    first, second = values.view(2, -1)
    for a, b in ((first, second), (first.square(), second.square()), (first[1:], first[:-1])):
        products = (a - a.mean()) * (b - b.mean())
        assert abs(float(products.mean() / products.std())) < 5 / len(products) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_normals_follow_their_distribution_function(dtype):
    values = inverse_normals(1 << 18, seed=1, probe=0, first=5, like=torch.empty(0, dtype=dtype))
    distance = largest_distance(1 / values, lambda x: (x / 2**0.5).erf())
    assert distance < KOLMOGOROV / len(values) ** 0.5
    expected = len(values) * (2 / math.pi) ** 0.5 / 1e4  # 21 beyond 1e4
    assert abs(int((values > 1e4).sum()) - expected) < 5 * expected**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_draws_repeat_and_have_mean_zero_and_variance_one(dtype):
    values = normal(100_000, seed=0, dtype=dtype)
    assert values.dtype == dtype
    assert torch.equal(normal(100_000, seed=0, dtype=dtype), values)
    assert not (normal(100_000, seed=1, dtype=dtype) == values).any()
    error = len(values) ** -0.5
    assert abs(float(values.double().mean())) < 5 * error
    assert abs(float(values.double().var()) - 1) < 5 * 2**0.5 * error


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    cauchy(100, seed=0, probe=0)
    draw_laplace()
    normal(100, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_generator_does_not_touch_the_draws():
    first = (cauchy(100, seed=0, probe=0), draw_laplace(), normal(100, seed=0))
    torch.manual_seed(12345)
    second = (cauchy(100, seed=0, probe=0), draw_laplace(), normal(100, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_derived_seeds_are_the_same_in_every_process_and_version():
    assert derive_seed("cauchy", 0, 0, 0) == 3845885032096377455


def test_derived_seeds_differ_and_fit_a_generator():
    seeds = [derive_seed(*parts) for parts in ((), (0,), ("0",), (0, 1), (1, 0), ("01",), (-1,))]
    seeds += [derive_seed("cauchy", 0, probe, chunk) for probe in range(50) for chunk in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The top bit of the 63 is set in half of them: nothing was cut off.
    assert abs(sum(seed >> 62 for seed in seeds) - len(seeds) / 2) < 5 * len(seeds) ** 0.5 / 2
