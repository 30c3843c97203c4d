"""How many vectors of d numbers each phase of a probe holds: O(d) memory is not enough."""

from dataclasses import replace

import pytest
import torch
from support.vector_count import counted_vectors, memory_elsewhere
from torch import nn

from lightning_linf import Landscape, measure_geometry, probe_memory
from lightning_linf.functional import offload
from lightning_linf.probe import measure_landscape
from lightning_linf.probe.gradient import measure_gradient
from lightning_linf.probe.noise import measure_noise
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.probe.products import HessianProducts

WIDTH = 1024  # of two linear maps, half of d each: their transient parts count, too
NUM_PARAMS = 2 * (WIDTH**2 + WIDTH)
# By phase, the most vectors alive at its peak, with all that earlier phases have left: a copy of
# the parameters, the gradient and the last step. Pieces in float64 take half a vector at this d.
BARS = {
    "entering": 0.1,
    "loss check": 6.5,
    "heterogeneity": 7.6,  # of the larger tensor, half of d, in float64
    "dual norms": 3.5,
    "R^2": 4.4,
    "secants": 6.8,
    "curvatures": 6.8,
    "product": 6.8,
}


def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    return module, [torch.randn(2, WIDTH) for _ in range(2)]


def loss(module, batch):
    return module(batch).square().mean()


def assert_within(counts, bars):
    over = {name: peak for name, peak in counts.items() if peak > bars.get(name, peak)}
    assert not over, over


def test_each_phase_of_the_gradient_holds_few_vectors():
    module, batches = network()
    partitions = choose_partitions(module, ["row"])
    with counted_vectors(NUM_PARAMS) as count:
        with Landscape(module, batches[:1], loss=loss) as landscape:
            landscape.check()
            measure_gradient(
                landscape,
                partitions,
                HessianProducts(landscape, None),
                landscape.parameters.zeros() + 1e-3,
            )
    assert set(BARS) <= set(count.peaks), str(count)
    assert_within(count.peaks, BARS)
    # What is held when a phase begins: the last step, the copy and the gradient.
    assert_within(count.starts, {"loss check": 0.1, "heterogeneity": 3.1, "dual norms": 3.1})


def test_errors_over_batches_hold_a_gradient_and_a_step_more():
    module, batches = network()
    partitions = choose_partitions(module, ["row"])
    with counted_vectors(NUM_PARAMS) as count:
        with Landscape(module, batches, loss=loss) as landscape:
            measure_gradient(landscape, partitions, HessianProducts(landscape, None), None)
    # Copy, gradient, that of a batch, that of the others, a step, and a piece in float64.
    assert_within(count.peaks, {"step errors": 6.2})
    assert "step errors" in count.peaks, str(count)


def test_a_product_takes_its_own_vector_and_parts_of_one():
    module, batches = network()
    vector = torch.randn(NUM_PARAMS)
    with counted_vectors(NUM_PARAMS) as count:
        with Landscape(module, batches[:1], loss=loss) as landscape:
            landscape.hvp(vector)
            landscape.hvp(vector)
    # Parameters, product, and what autograd holds of two tensors of half a vector each.
    assert count.peak < 3.6, str(count)


def test_noise_holds_four_sums_a_gradient_and_the_copy():
    module, batches = network()
    partitions = choose_partitions(module, ["row"])
    with counted_vectors(NUM_PARAMS) as count:
        with Landscape(module, batches, loss=loss) as landscape:
            noise = measure_noise(landscape, partitions)
    assert noise.report.num_microbatches == 2
    assert count.peak < 6.6, str(count)


@pytest.mark.slow
def test_a_whole_report_shows_its_counts():
    module, batches = network()
    partitions = choose_partitions(module, [])
    with counted_vectors(NUM_PARAMS) as count:
        with Landscape(module, batches[:1], loss=loss) as landscape:
            measure_landscape(landscape, partitions, num_probes=4)
    assert_within(count.peaks, {"gradient": 3.2, "curvatures": 5.8, "heterogeneity": 6.6})
    assert count.starts["probes"] < 2.1, str(count)  # the gradient is gone, the copy stays


@pytest.mark.slow
@pytest.mark.parametrize("place", [None, "cpu"])
@pytest.mark.parametrize("num_batches", [1, 2])
def test_what_probe_memory_predicts_is_what_is_counted(num_batches, place, monkeypatch):
    module, batches = network()
    monkeypatch.setattr(offload, "_host_memory", memory_elsewhere)
    options = {"loss": loss, "num_probes": 4, "offload": place}
    with counted_vectors(NUM_PARAMS) as none:
        memory = probe_memory(module, batches[:num_batches], num_partitions=3, **options)
    assert none.peak < 0.1  # it is counted without being taken
    with counted_vectors(NUM_PARAMS) as count:
        partitions = ("coordinate", "row", "global")  # of blocks of one and of several entries
        measure_geometry(module, batches[:num_batches], partitions=partitions, **options)
    for name, size in memory.phases.items():
        predicted = size / memory.vector
        # 0.6: of a gradient that is added up as it comes, a tensor is not there beside its sum.
        assert count.peaks[name] < predicted + 0.1 < count.peaks[name] + 0.7, (name, str(count))
    assert abs(memory.peak / memory.vector - count.peak) < 0.2, str(count)


def test_a_whole_report_holds_few_vectors():
    module, batches = network()
    with counted_vectors(NUM_PARAMS) as count:
        measure_geometry(
            module, batches[:1], loss=loss, partitions=("coordinate", "global"), num_probes=4
        )
    assert count.peak < 12.8, str(count)  # during a product of the operator norm


@pytest.mark.parametrize("num_batches", [1, 3])  # three have halves, too
def test_offloading_moves_no_bit(num_batches):
    module, batches = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)), []
    torch.manual_seed(1)
    for _ in range(num_batches):
        batches.append(torch.randn(4, 6))

    def report(place):
        partitions = ("coordinate", "row", "global")
        measured = measure_geometry(
            module, batches, loss=loss, partitions=partitions, num_probes=8, offload=place
        )
        return repr(replace(measured, seconds=0.0))

    assert report("cpu") == report(None)


@pytest.mark.slow
def test_offloading_leaves_what_products_need(monkeypatch):
    module, batches = network()
    monkeypatch.setattr(offload, "_host_memory", memory_elsewhere)
    with counted_vectors(NUM_PARAMS) as count:
        measure_geometry(
            module, batches[:1], loss=loss, partitions=("coordinate", "global"), num_probes=4,
            offload="cpu",
        )  # fmt: skip
    assert_within(count.peaks, {"operator norm": 8.5, "probes": 5.7, "surrogates": 4.0})
    assert count.peak < 8.5, str(count)
