"""Gradient heterogeneity against NumPy on the raw vector."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_linf.functional import heterogeneity, heterogeneity_sums
from lightning_linf.functional.heterogeneity import (
    QUANTILES,
    each_and_whole,
    heterogeneity_compute,
    log10_histogram,
)
from lightning_linf.functional.heterogeneity_sums import (
    NUM_BINS,
    HeterogeneitySums,
    heterogeneity_update,
    merge_tensors,
)

ROUNDING = 1e-12  # of sums of 1e4 float64 numbers: 1e4 * 1e-16
BIN_WIDTH = math.log10(1 + 1 / 32)  # what the docstring promises for quantiles
GROUPING = 0.01  # what it promises for the Gini coefficient and the energy share
FLOAT32_MAX = torch.finfo(torch.float32).max
FROM_HISTOGRAM = ("gini", "top_energy", "zero_fraction", "log10_quantiles")


def expected(gradient):
    """The statistics by their definitions, from all finite entries."""
    values = np.abs(gradient.detach().to(torch.float64).numpy().reshape(-1))
    values = np.sort(values[np.isfinite(values)])
    dim, energy = len(values), values**2
    ranks = np.arange(1, dim + 1)
    num_top = math.ceil(0.01 * dim)
    statistics = {
        "density": values.sum() ** 2 / (dim * energy.sum()),
        "gini": ((2 * ranks - dim - 1) * values).sum() / (dim * values.sum()),
        "top_energy": energy[-num_top:].sum() / energy.sum(),
        "zero_fraction": (values == 0).mean(),
        "log10_quantiles": np.quantile(np.log10(values[values > 0]), QUANTILES),
    }
    return {name: torch.as_tensor(value) for name, value in statistics.items()}


def assert_agrees(result, reference, names, **tolerance):
    for name in names:
        torch.testing.assert_close(
            getattr(result, name),
            reference[name],
            **tolerance,
            msg=lambda text, n=name: f"{n}: {text}",
        )


def two_values(low, high, num_low, num_high):
    return torch.tensor([low] * num_low + [high] * num_high, dtype=torch.float64)


def with_one_entry(dim, value):
    vector = torch.zeros(dim)
    vector[dim // 3] = value
    return vector


# Each is drawn inside the test, after seeding.
SHAPES_OF_DISTRIBUTION = {
    "normal": lambda: torch.randn(100, 100),
    "normal in float64": lambda: torch.randn(10_000, dtype=torch.float64),
    "uniform": lambda: torch.rand(5_000),
    "log-normal over 12 decades": lambda: torch.exp(5 * torch.randn(10_000)),
    "Cauchy": lambda: torch.randn(10_000) / torch.randn(10_000),
    "many zeros": lambda: torch.randn(10_000).clamp(min=1.5),
    "nearly all zeros": lambda: torch.randn(10_000) * (torch.rand(10_000) < 1e-3),
    "relu": lambda: torch.randn(4, 25, 100).relu(),
    "subnormals only": lambda: torch.randint(1, 2**22, (10_000,)).double().mul(2.0**-149).float(),
    "down to the smallest subnormal": lambda: torch.arange(1.0, 40.0).double().mul(2.0**-149),
    "around the smallest normal float32": lambda: torch.tensor(
        [1.0, 1.5, 1.9999999, 2.0, 3.0, 4.0], dtype=torch.float64
    ).mul(2.0**-127),
    "near the largest float32": lambda: torch.rand(1_000).mul(FLOAT32_MAX),
    "bfloat16": lambda: torch.randn(10_000).bfloat16(),
    "float16 with subnormals": lambda: torch.randn(10_000).mul(1e-5).half(),
    "all equal": lambda: torch.full((777,), -0.3),
    "all equal but for the sign": lambda: torch.randn(500).sign() * 1e-20,
    "one-hot": lambda: with_one_entry(1_000, -2.5),
    "one entry": lambda: torch.tensor([0.7]),
    "no dimension": lambda: torch.tensor(-0.7),
    "two entries": lambda: torch.tensor([1.0, -1e-3]),
    "ninety-nine entries": lambda: torch.randn(99),
    "one hundred and one entries": lambda: torch.randn(101),
    "equal sums at the ends of two bins": lambda: two_values(1.0, 8.2499, 824, 100),
    "the ends of one bin": lambda: two_values(1.0, 1.03124, 500, 500),
}


@pytest.fixture(params=SHAPES_OF_DISTRIBUTION)
def gradient(request):
    torch.manual_seed(0)
    return SHAPES_OF_DISTRIBUTION[request.param]()


def test_density_and_fractions_agree_with_numpy_to_rounding(gradient):
    result, reference = heterogeneity(gradient), expected(gradient)
    names = ("density", "zero_fraction")
    assert_agrees(result, reference, names, rtol=ROUNDING, atol=0)


def test_gini_and_top_energy_agree_with_numpy_to_what_is_promised(gradient):
    result, reference = heterogeneity(gradient), expected(gradient)
    assert_agrees(result, reference, ("gini", "top_energy"), rtol=0, atol=GROUPING)


def test_quantiles_agree_with_numpy_to_the_width_of_a_bin(gradient):
    result, reference = heterogeneity(gradient), expected(gradient)
    assert_agrees(result, reference, ("log10_quantiles",), rtol=0, atol=BIN_WIDTH)


def test_every_entry_is_counted_once(gradient):
    sums = heterogeneity_update([gradient])
    assert sums.histogram.shape == (1, NUM_BINS)
    assert int(sums.histogram.sum()) == gradient.numel()
    assert int(sums.num_zero) == int((gradient == 0).sum())


def test_top_energy_is_within_the_promise_when_shares_sit_at_the_ends_of_bins():
    # 1 % of entries just below a bin's upper edge carry as much as the others at a lower edge.
    gradient = two_values(1.0, 8.2499, 6_732, 68)
    result, reference = heterogeneity(gradient), expected(gradient)
    assert_agrees(result, reference, ("top_energy",), rtol=0, atol=0.02)


def test_equal_magnitudes_have_density_one_and_gini_zero():
    result = heterogeneity(torch.tensor([3.0, -3.0, 3.0, 3.0]))
    assert float(result.density) == 1.0
    assert float(result.gini) == 0.0


@pytest.mark.parametrize("dim", [1, 2, 100, 1_000])
def test_one_hot_gradient_has_density_one_over_d_and_all_its_energy_on_top(dim):
    result = heterogeneity(with_one_entry(dim, 5.0))
    assert float(result.density) == 1 / dim
    assert float(result.gini) == (dim - 1) / dim
    assert float(result.top_energy) == 1.0
    assert float(result.zero_fraction) == (dim - 1) / dim


@pytest.mark.parametrize("magnitude", [1e-100, 1e-50, 1e50, 1e100])
def test_float64_beyond_float32_keeps_exact_density_and_fractions(magnitude):
    gradient = torch.randn(1_000, dtype=torch.float64) * magnitude
    gradient[::10] = 0.0
    result, reference = heterogeneity(gradient), expected(gradient)
    names = ("density", "zero_fraction")
    assert_agrees(result, reference, names, rtol=ROUNDING, atol=0)


def test_float64_beyond_float32_counts_in_the_end_bins():
    gradient = torch.tensor([1e-60, 1e-50, 1e50, 1e60], dtype=torch.float64)
    sums = heterogeneity_update([gradient])
    assert int(sums.histogram[0, 0]) == 2
    assert int(sums.histogram[0, -1]) == 2
    quantiles = heterogeneity(gradient).log10_quantiles
    ends = torch.tensor([2.0**-149, FLOAT32_MAX], dtype=torch.float64).log10()
    torch.testing.assert_close(quantiles[[0, -1]], ends, rtol=0, atol=0.03)  # it interpolates


def test_a_few_entries_beyond_float32_leave_the_rest_in_place():
    gradient = torch.randn(10_000, dtype=torch.float64)
    gradient[:5] = 1e100
    gradient[5:10] = 1e-100
    result, reference = heterogeneity(gradient), expected(gradient)
    assert_agrees(result, reference, ("gini", "top_energy"), rtol=0, atol=GROUPING)
    assert_agrees(result, reference, ("log10_quantiles",), rtol=0, atol=BIN_WIDTH)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_infinite_and_nan_entries_are_counted_and_left_out_of_the_rest(dtype):
    finite = torch.randint(-30, 31, (400,)).to(dtype)  # integers: sums in any order are exact
    bad = torch.tensor([torch.inf, -torch.inf, torch.nan, torch.inf], dtype=dtype)
    mixed = torch.cat([bad[:2], finite[:150], bad[2:3], finite[150:], bad[3:]])
    result, reference = heterogeneity(mixed), heterogeneity(finite)
    assert (int(result.num_inf), int(result.num_nan)) == (3, 1)
    assert (int(reference.num_inf), int(reference.num_nan)) == (0, 0)
    for name in ("density", *FROM_HISTOGRAM):
        assert torch.equal(getattr(result, name), getattr(reference, name)), name


@pytest.mark.parametrize("gradient", [torch.zeros(20), torch.zeros(0), torch.tensor([torch.nan])])
def test_gradient_without_magnitude_gives_nan_and_no_warning(gradient):
    result = heterogeneity(gradient)
    for value in (result.density, result.gini, result.top_energy, result.log10_quantiles):
        assert value.isnan().all()


def test_zero_gradient_is_all_zeros():
    assert float(heterogeneity(torch.zeros(4, 5)).zero_fraction) == 1.0


@pytest.mark.parametrize("exponent", [-100, -3, 1, 100])
def test_scaling_by_a_power_of_two_changes_nothing_but_the_quantiles(exponent):
    # Integers of few bits: every sum is exact in float64, in whichever order it is formed.
    gradient = torch.randint(-1_000, 1_001, (2_000,)).float()
    result, scaled = heterogeneity(gradient), heterogeneity(gradient * 2.0**exponent)
    for name in ("density", "gini", "top_energy", "zero_fraction"):
        assert torch.equal(getattr(scaled, name), getattr(result, name)), name
    shift = exponent * math.log10(2)
    torch.testing.assert_close(
        scaled.log10_quantiles, result.log10_quantiles + shift, rtol=0, atol=ROUNDING * 100
    )


def test_order_and_sign_and_shape_of_entries_do_not_matter():
    gradient = torch.randint(-1_000, 1_001, (2_000,)).float()
    shuffled = -gradient[torch.randperm(2_000)].reshape(40, 50)
    for value, other in zip(heterogeneity(gradient), heterogeneity(shuffled), strict=True):
        assert torch.equal(value, other)


def test_order_of_entries_changes_no_count_for_any_distribution(gradient):
    shuffled = gradient.reshape(-1)[torch.randperm(gradient.numel())]
    result, other = heterogeneity(gradient), heterogeneity(shuffled)
    for name in FROM_HISTOGRAM:
        assert torch.equal(getattr(result, name), getattr(other, name)), name
    torch.testing.assert_close(result.density, other.density, rtol=ROUNDING, atol=0)


def test_sums_of_parts_are_the_sums_of_the_whole():
    gradient = torch.randint(-500, 501, (3_000,)).double()
    gradient[[5, 700]] = torch.inf
    gradient[[9, 2_000]] = torch.nan
    parts = heterogeneity_update(gradient.split([1, 999, 2_000]))
    whole = heterogeneity_update([gradient])
    for merged, value in zip(merge_tensors(parts), whole, strict=True):
        assert torch.equal(merged, value[0])


def test_counts_of_parts_are_those_of_the_whole_for_any_distribution(gradient):
    parts = merge_tensors(heterogeneity_update(gradient.reshape(-1).tensor_split(3)))
    whole = HeterogeneitySums(*(value[0] for value in heterogeneity_update([gradient])))
    for name in ("histogram", "num_zero", "num_inf", "num_nan"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    for name in ("abs_sum", "square_sum"):
        torch.testing.assert_close(
            getattr(parts, name), getattr(whole, name), rtol=ROUNDING, atol=0
        )


def test_statistics_per_tensor_are_those_of_each_tensor_alone():
    tensors = [torch.randn(30, 20), torch.zeros(7), torch.randn(500).double() * 1e-6]
    per_tensor = heterogeneity_compute(heterogeneity_update(tensors))
    assert per_tensor.density.shape == (3,)
    assert per_tensor.log10_quantiles.shape == (3, len(QUANTILES))
    for row, tensor in enumerate(tensors):
        for values, alone in zip(per_tensor, heterogeneity(tensor), strict=True):
            # The sum over bins may be grouped differently for several rows.
            torch.testing.assert_close(
                values[row], alone, rtol=ROUNDING, atol=ROUNDING, equal_nan=True
            )


class CountCalls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.num_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_calls += 1
        return func(*args, **(kwargs or {}))


def test_thousands_of_small_tensors_share_calls_and_empty_bins_cost_nothing():
    tensors = [torch.randn(5) for _ in range(200)]
    with CountCalls() as update:
        sums = heterogeneity_update(tensors)
    assert update.num_calls < 14 * len(tensors)  # each alone takes 30
    for got, *alone in zip(sums, *(heterogeneity_update([t]) for t in tensors), strict=True):
        torch.testing.assert_close(got, torch.cat(alone), rtol=0, atol=0)
    num_used = int(sums.histogram.any(dim=0).sum())
    widest = 0

    class Widths(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal widest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                widest = max(widest, result.numel())
            return result

    with Widths():
        heterogeneity_compute(sums)
    assert widest <= max(len(tensors) * (num_used + 1), NUM_BINS + 1)


@pytest.mark.parametrize("together", [1, 7, 64, 1_000])
def test_groups_and_pieces_of_any_size_count_the_same(together, monkeypatch):
    tensors = [torch.randint(-9, 10, (n,)).double() for n in (0, 3, 200, 1, 64, 65, 0, 7, 500, 0)]
    for tensor in tensors:
        tensor[::5], tensor[::7], tensor[::11] = torch.nan, torch.inf, 1e300
    whole = heterogeneity_update(tensors)
    monkeypatch.setattr(heterogeneity_sums, "_ENTRIES_TOGETHER", together)
    for value, reference in zip(heterogeneity_update(tensors), whole, strict=True):
        torch.testing.assert_close(value, reference, rtol=ROUNDING, atol=0)


def test_no_wide_copy_of_a_large_gradient_is_made(monkeypatch):
    monkeypatch.setattr(heterogeneity_sums, "_ENTRIES_TOGETHER", 100)
    widest = 0

    class Widths(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal widest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.float32:
                    widest = max(widest, tensor.numel())
            return result

    with Widths():
        heterogeneity_update([torch.randn(20_000)])
    assert widest == NUM_BINS + 2  # the histogram of a piece


def test_tensors_of_several_devices_are_refused():
    tensors = [torch.ones(3), torch.ones(3, device="meta")]
    with pytest.raises(ValueError, match=r"heterogeneity: expected tensors of one device.*meta"):
        heterogeneity_update(tensors)


def test_overall_statistics_are_those_of_the_joined_vector():
    tensors = [torch.randn(30, 20), torch.zeros(7), torch.randn(500) * 1e-6]
    overall = heterogeneity_compute(merge_tensors(heterogeneity_update(tensors)))
    joined = heterogeneity(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    for value, reference in zip(overall, joined, strict=True):
        torch.testing.assert_close(value, reference, rtol=ROUNDING, atol=ROUNDING)


def test_statistics_of_each_and_of_the_whole_are_those_computed_apart():
    sums = heterogeneity_update([torch.randn(30, 20), torch.zeros(7), torch.randn(500) * 1e-6])
    apart = heterogeneity_compute(sums), heterogeneity_compute(merge_tensors(sums))
    for result, reference in zip(each_and_whole(sums), apart, strict=True):
        for value, other in zip(result, reference, strict=True):
            torch.testing.assert_close(value, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)


def test_strided_and_transposed_and_expanded_gradients_count_their_entries():
    base = torch.randint(-1_000, 1_001, (60, 80)).float()
    for view in (base.t(), base[::3, 1::2], base[:, 5], base[:1].expand(9, 80)):
        assert view.shape != base.shape
        for value, reference in zip(
            heterogeneity(view), heterogeneity(view.contiguous().clone()), strict=True
        ):
            assert torch.equal(value, reference)


def test_gradient_is_only_read():
    gradient = torch.randn(100, requires_grad=True)
    before = gradient.detach().clone()
    result = heterogeneity(gradient)
    assert not result.density.requires_grad
    assert torch.equal(gradient.detach(), before)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.bool])
def test_complex_and_integer_gradients_are_refused(dtype):
    with pytest.raises(ValueError, match=r"heterogeneity: expected real floating.*view_as_real"):
        heterogeneity(torch.ones(3).to(dtype))


def test_no_tensor_at_all_is_refused():
    with pytest.raises(ValueError, match="heterogeneity: expected at least one tensor, got none"):
        heterogeneity_update([])


def test_histogram_of_logarithms_counts_every_nonzero_finite_entry_in_its_bin():
    gradient = torch.randn(5000, dtype=torch.float64).exp() ** 3
    gradient[:7], gradient[7], gradient[8], gradient[9] = 0.0, math.nan, -math.inf, 2.0**-149
    gradient[10], gradient[11] = 1.0, -1.0  # an edge belongs to the bin above
    sums = merge_tensors(heterogeneity_update([gradient[:3000], gradient[3000:]]))
    edges, counts = log10_histogram(sums)
    values = gradient[gradient.isfinite() & (gradient != 0)].abs().numpy()
    # Rounding of the logarithm must not decide: compare the values themselves.
    expected_counts, _ = np.histogram(values, np.float64(10) ** edges.numpy() * (1 - 1e-13))
    assert counts.tolist() == expected_counts.tolist()
    assert counts.sum() == len(values)
    assert counts[0] > 0
    assert counts[-1] > 0
    assert edges.diff().max() < 0.1


def test_histogram_of_a_zero_gradient_is_empty():
    edges, counts = log10_histogram(merge_tensors(heterogeneity_update([torch.zeros(4)])))
    assert len(edges) == len(counts) == 0
