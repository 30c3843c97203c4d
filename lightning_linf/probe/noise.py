"""Gradient noise of a landscape, from the gradients of its batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.functional.noise import noise_compute
from lightning_linf.functional.noise_sums import NoiseSums, noise_init, noise_merge, noise_update
from lightning_linf.functional.vector_shards import num_here
from lightning_linf.partition import Partition
from lightning_linf.probe.gradient import require_finite_gradient
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.partitions import on_shards
from lightning_linf.report import NoiseReport


class MeasuredNoise(NamedTuple):
    """What a report says of the gradient noise. Nothing in it is of the size of the parameters."""

    report: NoiseReport
    signal_to_noise: Tensor  # (T,), of each parameter tensor


def measure_noise(landscape: Landscape, partitions: Sequence[Partition]) -> MeasuredNoise:
    """Measure the noise in the gradients of the batches of all ranks, at one gradient for each.

    Raises:
        ProbeError: If there are fewer than two batches in all, or a gradient is not finite.
    """
    partitions = on_shards(partitions, landscape.parameters.device)
    sums = noise_of_batches(landscape)
    result = noise_compute(sums, landscape.parameters.sizes, {p.name: p for p in partitions})
    noise = NoiseReport(
        num_microbatches=int(sums.counts.sum()) + 1,
        weight=float(sums.weight),
        trace=float(result.trace),
        trace_relative_error=float(result.trace_relative_error),
        noise_scale=float(result.noise_scale),
        block_noise={name: float(value) for name, value in result.block_noise.items()},
        noise_scale_lower={n: float(lower) for n, (lower, _) in result.block_noise_scale.items()},
        noise_scale_upper={n: float(upper) for n, (_, upper) in result.block_noise_scale.items()},
    )
    return MeasuredNoise(noise, result.tensor_signal_to_noise)


def noise_of_batches(landscape: Landscape) -> NoiseSums:
    """Gather the gradient of each batch of each rank in sums of 4 d numbers, or shards of them.

    Raises:
        ProbeError: If there are fewer than two batches in all, or a gradient is not finite.
    """
    vector, ranks = landscape.parameters, landscape.batch_ranks
    turn, dim = ranks.rank % 2, num_here(vector.num_params)
    sums = landscape.ranks.together(lambda: noise_init(dim, vector.like, turn))

    def add(gradient: Tensor, weight: float) -> None:
        require_finite_gradient(gradient)
        noise_update(sums, gradient, weight)

    landscape.each_gradient(add)
    sums = over_ranks(sums, ranks)
    if not sums.counts.sum() > 0:
        raise ProbeError(
            "measure_geometry: expected at least two batches for the gradient noise, got one. "
            "Pass more `noise_batches`."
        )
    return sums


def over_ranks(sums: NoiseSums, ranks: Ranks) -> NoiseSums:
    """Merge the sums of all ranks, which are used up."""
    if ranks.is_alone:
        return sums
    spare = ranks.together(lambda: torch.empty_like(sums.mean))
    return noise_merge(sums, ranks.sum, spare)
