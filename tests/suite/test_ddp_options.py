"""Options of DistributedDataParallel: training with monitors stays the same, and so do numbers."""

import os
import warnings

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.bit_identity import assert_same
from support.faulty_training import Regression, fit, weights
from support.ranks import environment, in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.optim import BlockwiseAdam
from lightning_linf.probe import Landscape

pytestmark = pytest.mark.slow

# With how many microbatches. torch's static graph fails if its first one is not synchronised.
OPTIONS = {
    "none": ({}, 2),
    "bucket views": ({"gradient_as_bucket_view": True}, 2),
    "unused": ({"find_unused_parameters": True}, 2),
    "none, whole": ({}, 1),
    "static": ({"static_graph": True}, 1),
    "all": ({"static_graph": True, "gradient_as_bucket_view": True, "bucket_cap_mb": 0.0001}, 1),
}
SAME = ("density", "gini", "one_one_norm_per_param", "lambda_max", "edge", "probe_loss")


def monitors():
    options = {"on_error": "raise"}
    return [
        GradientHeterogeneityMonitor(2, **options),
        GradientNoiseMonitor(2, **options),
        LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None, **options),
        EdgeMonitor(2, max_overhead=None, **options),
    ]


def train(folder, callbacks, ddp=None, num_microbatches=2):
    module = Regression()
    if ddp is not None and "find_unused_parameters" in ddp:
        module.unused = nn.Parameter(torch.ones(3))
    strategy = "auto" if ddp is None else DDPStrategy(process_group_backend="gloo", **ddp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(
            module, callbacks, folder, strategy=strategy, devices=1 if ddp is None else 2,
            accumulate_grad_batches=num_microbatches, max_steps=4,
        )  # fmt: skip
    return weights(module)


def measured(callbacks):
    """What monitors found, but for the clock's numbers and for lists of tensors."""

    def numbers(entry):
        clock = ("_seconds", "_overhead")
        pairs = ((k, v) for k, v in entry.items() if isinstance(v, (int, float)))
        return {k: repr(v) if v != v else v for k, v in pairs if not k.endswith(clock)}

    return [[numbers(entry) for entry in monitor.history] for monitor in callbacks]


def test_training_is_bit_identical_and_numbers_are_those_of_plain_ddp(tmp_path):
    def on_rank(rank):
        os.environ.update(environment(rank))
        found = {}
        for name, options in OPTIONS.items():
            callbacks = monitors()
            ours, plain = (train(tmp_path, each, *options) for each in (callbacks, []))
            found[name] = torch.equal(ours, plain), measured(callbacks)
        return found

    results = in_two_processes(on_rank, tmp_path)
    alone = monitors()
    train(tmp_path, alone)
    for result in results:
        assert not isinstance(result, Exception), result
        for name, (is_same, found) in result.items():
            assert is_same, name
            if name != "unused":  # which has three parameters more
                alike = "none" if OPTIONS[name][1] == 2 else "none, whole"
                assert_same(found, result[alike][1])
        for history, expected in zip(result["none"][1], measured(alone), strict=True):
            assert len(history) == len(expected) == 2
            for entry, reference in zip(history, expected, strict=True):
                for key in set(SAME) & set(reference):
                    assert entry[key] == pytest.approx(reference[key], rel=1e-3), key
        of_unused, plain = result["unused"][1], result["none"][1]
        for entry, reference in zip(of_unused[2], plain[2], strict=True):
            assert entry["lambda_max"] == pytest.approx(reference["lambda_max"], rel=1e-4)


def test_ranks_with_unequal_numbers_of_batches(tmp_path):
    """In a loop of torch's own: Lightning has no join. A probe falls where all have a batch."""
    num_batches, probed = (5, 3), 2
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)

    def loss(module, x):
        return (module(x) - x.sin()).square().mean()

    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()

    def reduce(tensor):
        torch.distributed.all_reduce(tensor)
        return tensor

    def loop(rank, make_optimizer, probe):
        module = DistributedDataParallel(network())
        optimizer = make_optimizer(module.module)
        found = None
        with module.join():
            for step, x in enumerate(data[rank, : num_batches[rank]]):
                if probe and step == probed:
                    with Landscape(module.module, [x], loss=loss, reduce=reduce) as landscape:
                        found = landscape.hvp(landscape.gradient())
                optimizer.zero_grad()
                loss(module, x).backward()
                optimizer.step()
        return found, nn.utils.parameters_to_vector(module.parameters()).detach()

    def ours(module):
        return BlockwiseAdam(module.named_parameters(), lr=0.01, partition="coordinate")

    def theirs(module):
        return torch.optim.Adam(module.parameters(), lr=0.01)

    def on_rank(rank):
        found, with_probe = loop(rank, ours, probe=True)
        return found, with_probe, loop(rank, ours, probe=False)[1], loop(rank, theirs, False)[1]

    results = in_two_processes(on_rank, tmp_path)
    for result in results:
        assert not isinstance(result, Exception), result
        _, with_probe, without, of_torch = result
        assert torch.equal(with_probe, without)
        torch.testing.assert_close(with_probe, of_torch, rtol=1e-9, atol=1e-12)

    module = network()
    optimizer = theirs(module)
    for step in range(probed):
        optimizer.zero_grad()
        loss(module, data[:, step].flatten(0, 1)).backward()
        optimizer.step()
    with Landscape(module, [data[:, probed].flatten(0, 1)], loss=loss) as landscape:
        expected = landscape.hvp(landscape.gradient())
    for found, *_ in results:
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
