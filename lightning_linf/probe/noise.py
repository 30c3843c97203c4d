"""Gradient noise of a landscape, from the gradients of its batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.functional.noise import noise_compute
from lightning_linf.functional.noise_sums import NoiseSums, noise_init, noise_merge, noise_update
from lightning_linf.partition import Partition
from lightning_linf.probe.landscape import Landscape
from lightning_linf.report import NoiseReport


def measure_noise(landscape: Landscape) -> NoiseSums:
    """Gather the gradient of each batch of each rank, at the cost of one gradient each.

    Raises:
        ProbeError: If there are fewer than two batches in all.
    """
    vector, ranks = landscape.parameters, landscape.ranks
    sums = ranks.together(lambda: noise_init(vector.num_params, vector.like))
    landscape.each_gradient(lambda gradient, weight: noise_update(sums, gradient, weight))
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


def summarize_noise(
    sums: NoiseSums, tensor_sizes: Sequence[int], partitions: Sequence[Partition]
) -> tuple[NoiseReport, Tensor]:
    """Compute what a report says of the noise, and each tensor's signal-to-noise ratio (T,)."""
    result = noise_compute(sums, tensor_sizes, {p.name: p for p in partitions})
    noise = NoiseReport(
        num_microbatches=int(sums.counts.sum()) + 1,
        weight=float(sums.weight),
        trace=float(result.trace),
        trace_relative_error=float(result.trace_relative_error),
        noise_scale=float(result.noise_scale),
        block_noise={name: float(value) for name, value in result.block_noise.items()},
    )
    return noise, result.tensor_signal_to_noise
