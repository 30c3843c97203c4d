"""Metrics agree with the functions, however the data arrive."""

import pickle

import pytest
import torch

from lightning_linf.functional import cauchy, cross_fitted_one_one_norm, heterogeneity
from lightning_linf.functional.heterogeneity import heterogeneity_compute
from lightning_linf.functional.heterogeneity_sums import heterogeneity_update
from lightning_linf.metrics import GradientHeterogeneity, OneOneNorm

SIZES = [12, 1, 7]
NUM_PROBES = 9
SEED = 4
ROUNDING = 1e-12  # float64 sums of a few numbers in another order


@pytest.fixture
def products():
    matrix = torch.randn(20, 20, dtype=torch.float64)
    matrix = matrix + matrix.T
    probes = [cauchy(20, seed=SEED, probe=k, dtype=torch.float64) for k in range(NUM_PROBES)]
    return torch.stack(probes) @ matrix


def one_one_norm_metric():
    return OneOneNorm(SIZES, NUM_PROBES, seed=SEED, dtype=torch.float64)


def gradients_of_two_batches():
    """Three tensors, of other lengths in each batch; integers, so that sums are exact."""
    return [
        [torch.randint(-99, 100, (n,)).float() for n in (50, 1, 300)],
        [torch.randint(-99, 100, (n,)).float() for n in (7, 20, 100)],
    ]


def add_states(metric, other):
    """Reduce as torchmetrics does over two ranks."""
    for name, reduce in metric._reductions.items():
        setattr(metric, name, reduce(torch.stack([getattr(metric, name), getattr(other, name)])))


def assert_equal(result, reference):
    for value, expected in zip(result, reference, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


def assert_close(result, reference):
    for value, expected in zip(result, reference, strict=True):
        torch.testing.assert_close(value, expected, rtol=ROUNDING, atol=0)


def test_one_one_norm_probe_by_probe_equals_the_function_over_all(products):
    metric = one_one_norm_metric()
    for probe, product in enumerate(products):
        metric.update(product, probe)
    assert_equal(metric.compute(), cross_fitted_one_one_norm(products, seed=SEED, sizes=SIZES))


def test_order_of_probes_does_not_matter(products):
    metric = one_one_norm_metric()
    for probe in torch.randperm(NUM_PROBES).tolist():
        metric.update(products[probe], probe)
    assert_close(metric.compute(), cross_fitted_one_one_norm(products, seed=SEED, sizes=SIZES))


@pytest.mark.parametrize("first", [[0, 1, 2, 3], [0, 2, 4, 6, 8], [7], []])
def test_states_of_two_ranks_added_equal_one_rank_with_all_probes(products, first):
    metric, other = one_one_norm_metric(), one_one_norm_metric()
    for probe, product in enumerate(products):
        (metric if probe in first else other).update(product, probe)
    add_states(metric, other)
    metric._update_count = 1  # of a rank that saw none itself
    assert_close(metric.compute(), cross_fitted_one_one_norm(products, seed=SEED, sizes=SIZES))


def test_compute_before_every_probe_is_refused_and_works_once_complete(products):
    metric = one_one_norm_metric()
    for probe in range(NUM_PROBES - 1):
        metric.update(products[probe], probe)
    with pytest.raises(
        ValueError, match=r"expected each of the 9 probes once, got counts \[1, .*0\]"
    ):
        metric.compute()
    metric.update(products[-1], NUM_PROBES - 1)
    assert_equal(metric.compute(), cross_fitted_one_one_norm(products, seed=SEED, sizes=SIZES))


def test_probe_that_came_twice_is_refused(products):
    metric = one_one_norm_metric()
    for probe in [*range(NUM_PROBES), 3]:
        metric.update(products[probe], probe)
    with pytest.raises(ValueError, match="Add every probe exactly once"):
        metric.compute()


def test_one_one_norm_starts_afresh_after_reset(products):
    metric = one_one_norm_metric()
    metric.update(1e6 * products[0], 0)
    metric.reset()
    assert int(metric.num_seen.sum()) == 0
    for probe, product in enumerate(products):
        metric.update(product, probe)
    assert_equal(metric.compute(), cross_fitted_one_one_norm(products, seed=SEED, sizes=SIZES))


def test_two_metrics_share_no_state(products):
    metric, other = one_one_norm_metric(), one_one_norm_metric()
    metric.update(products[0], 0)
    assert int(other.num_seen.sum()) == 0


def test_one_one_norm_is_pickled_half_way_with_its_states(products):
    metric = one_one_norm_metric()
    for probe in range(4):
        metric.update(products[probe], probe)
    metric = pickle.loads(pickle.dumps(metric))
    for probe in range(4, NUM_PROBES):
        metric.update(products[probe], probe)
    assert_equal(metric.compute(), cross_fitted_one_one_norm(products, seed=SEED, sizes=SIZES))


def test_memory_of_one_one_norm_does_not_grow_with_the_vectors():
    few, many = (OneOneNorm([1_000], n) for n in (4, 64))
    numbers = [sum(getattr(m, name).numel() for name in m._defaults) for m in (few, many)]
    assert numbers[1] - numbers[0] == 60 * (63 + 1)  # of 63 runs of 16 entries, and a count


def test_one_one_norm_refuses_what_the_function_refuses():
    with pytest.raises(ValueError, match=r"expected `num_probes` >= 4 .* got 3"):
        OneOneNorm([5], num_probes=3)
    metric = OneOneNorm([5], num_probes=4)
    with pytest.raises(ValueError, match=r"expected a product of shape \(5,\), got \(6,\)"):
        metric.update(torch.ones(6), 0)
    with pytest.raises(ValueError, match="expected a finite product for probe 1"):
        metric.update(torch.full((5,), torch.inf), 1)
    for probe in (-1, 4):
        with pytest.raises(ValueError, match=f"expected `probe` from 0 to 3, got {probe}"):
            metric.update(torch.ones(5), probe)
    assert not metric.log_sums.any()
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `num_probe`"):
        OneOneNorm([5], 4, num_probe=4)


def test_heterogeneity_over_batches_equals_the_function_over_all():
    first, second = gradients_of_two_batches()
    metric = GradientHeterogeneity(3)
    metric.update(first)
    metric.update(second)
    per_tensor, overall = metric.compute()
    joined = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    assert_equal(per_tensor, heterogeneity_compute(heterogeneity_update(joined)))
    assert_equal(overall, heterogeneity(torch.cat(joined)))


def test_order_of_batches_does_not_matter():
    batches = gradients_of_two_batches()
    results = []
    for order in (batches, batches[::-1]):
        metric = GradientHeterogeneity(3)
        for batch in order:
            metric.update(batch)
        results.append(metric.compute())
    for result, reference in zip(*results, strict=True):
        assert_equal(result, reference)


def test_heterogeneity_states_of_two_ranks_added_equal_one_rank_with_all_batches():
    batches = gradients_of_two_batches()
    single, first, second = (GradientHeterogeneity(3) for _ in range(3))
    for batch, rank in zip(batches, (first, second), strict=True):
        single.update(batch)
        rank.update(batch)
    add_states(first, second)
    for result, reference in zip(first.compute(), single.compute(), strict=True):
        assert_equal(result, reference)


def test_heterogeneity_starts_afresh_after_reset():
    first, second = gradients_of_two_batches()
    metric = GradientHeterogeneity(3)
    metric.update(first)
    metric.reset()
    metric.update(second)
    assert_equal(metric.compute()[0], heterogeneity_compute(heterogeneity_update(second)))


def test_calling_the_metric_gives_the_batch_and_keeps_the_sum():
    first, second = gradients_of_two_batches()
    metric, reference = GradientHeterogeneity(3), GradientHeterogeneity(3)
    metric.update(first)
    of_batch, _ = metric(second)
    assert_equal(of_batch, heterogeneity_compute(heterogeneity_update(second)))
    reference.update(first)
    reference.update(second)
    assert_equal(metric.compute()[1], reference.compute()[1])


def test_heterogeneity_is_pickled_with_its_states():
    first, second = gradients_of_two_batches()
    metric, reference = GradientHeterogeneity(3), GradientHeterogeneity(3)
    for batch in (first, second):
        reference.update(batch)
    metric.update(first)
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(second)
    for result, expected in zip(metric.compute(), reference.compute(), strict=True):
        assert_equal(result, expected)


@pytest.mark.parametrize("num_tensors", [0, -1])
def test_heterogeneity_of_no_tensor_is_refused(num_tensors):
    with pytest.raises(ValueError, match=f"expected `num_tensors` >= 1, got {num_tensors}"):
        GradientHeterogeneity(num_tensors)


@pytest.mark.parametrize("num_given", [0, 2, 4])
def test_another_number_of_gradients_is_refused_and_changes_nothing(num_given):
    metric = GradientHeterogeneity(3)
    with pytest.raises(ValueError, match=f"expected 3 gradients, got {num_given}"):
        metric.update([torch.ones(2)] * num_given)
    assert not metric.histogram.any()


def test_integer_gradients_are_refused():
    with pytest.raises(ValueError, match=r"expected real floating tensors, got torch\.int64"):
        GradientHeterogeneity(1).update([torch.ones(2, dtype=torch.int64)])


def test_heterogeneity_keeps_its_sums_whatever_its_dtype():
    gradient = torch.randn(5_000)
    metric = GradientHeterogeneity(num_tensors=1).set_dtype(torch.bfloat16)
    metric.update([gradient])
    _, whole = metric.compute()
    assert_equal(whole, heterogeneity(gradient))
    assert whole.density < 1
