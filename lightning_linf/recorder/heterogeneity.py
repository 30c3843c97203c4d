"""The spread of a live gradient as numbers by tag and column, over one process or many."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_linf import quantities
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.distributed.shards import is_counted_here, is_sharded, local_grad
from lightning_linf.functional.heterogeneity import (
    QUANTILES,
    Heterogeneity,
    each_and_whole,
    log10_histogram,
)
from lightning_linf.functional.heterogeneity_sums import (
    HeterogeneitySums,
    heterogeneity_update,
    merge_tensors,
)

_MEDIAN = QUANTILES.index(0.5)


class GradientSpread(NamedTuple):
    """What is recorded of a gradient."""

    scalars: dict[str, float]  # by tag
    columns: dict[str, Tensor]  # by name, of each of T parameter tensors: (T,) or (T, q)
    whole: dict[str, Tensor]  # the same of all parameters together: () or (q,)
    histogram: tuple[Tensor, Tensor]  # of log10|g|: edges (B + 1,) and counts (B,)


def sums_over_ranks(
    parameters: Sequence[nn.Parameter], ranks: Ranks, scale: float, rank: int, world_size: int
) -> HeterogeneitySums:
    """Count the gradients of parameters, of which each rank counts its part.

    Args:
        parameters: With ``.grad``; one without counts as zeros. Gradients of parameters that are
            not sharded must be the same on all ranks.
        ranks: Which all make this call.
        scale: Factor on the gradients that is taken off.
        rank: Number of this rank.
        world_size: How many there are.

    Raises:
        ValueError: If no parameter has a gradient.
    """
    share = (rank, world_size)
    sums = ranks.together(lambda: _sums_of_share(parameters, scale, *share))
    if ranks.is_alone:
        return sums
    counts = torch.cat([sums.histogram, *(c[:, None] for c in sums[1:4])], dim=1)  # (T, bins + 3)
    counts, totals = ranks.sum(counts), ranks.sum(torch.stack(sums[4:]))
    return HeterogeneitySums(counts[:, :-3], *counts[:, -3:].unbind(dim=1), *totals)


def spread_of(sums: HeterogeneitySums) -> GradientSpread:
    """Turn the sums of T parameter tensors into what is recorded of them."""
    each, whole = (_on_host(result) for result in each_and_whole(sums))
    scalars = {
        quantities.DENSITY.tag: float(whole.density),
        quantities.GINI.tag: float(whole.gini),
        quantities.TOP_ENERGY.tag: float(whole.top_energy),
        quantities.ZERO_FRACTION.tag: float(whole.zero_fraction),
        quantities.MEDIAN_LOG10_GRAD.tag: float(whole.log10_quantiles[_MEDIAN]),
        quantities.NUM_NONFINITE.tag: float(whole.num_inf + whole.num_nan),
    }
    histogram = log10_histogram(merge_tensors(sums))
    return GradientSpread(scalars, _columns(each), _columns(whole), histogram)


def _sums_of_share(
    parameters: Sequence[nn.Parameter], scale: float, rank: int, world_size: int
) -> HeterogeneitySums:
    """Count this rank's part of each gradient; the counts of all ranks add up to the whole's."""
    if all(p.grad is None for p in parameters):
        raise ValueError("expected gradients before the optimizer step, but all are None.")
    parts = []
    for p in parameters:
        # The gradient of a parameter that the loss does not reach is zero.
        gradient = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
        if is_sharded(p):
            part = local_grad(p, gradient).reshape(-1)
            parts.append(part if is_counted_here(p) else part[:0])
        else:  # alike on all ranks
            parts.append(gradient.reshape(-1).tensor_split(world_size)[rank])
    return heterogeneity_update(parts if scale == 1.0 else [part / scale for part in parts])


def _on_host(result: Heterogeneity) -> Heterogeneity:
    """Copy statistics from the device, all at once."""
    numbers = torch.cat([torch.stack(result[:-1], dim=-1), result.log10_quantiles], dim=-1).cpu()
    values, quantiles = numbers[..., : -len(QUANTILES)], numbers[..., -len(QUANTILES) :]
    return Heterogeneity._make([*values.unbind(dim=-1), quantiles])


def _columns(result: Heterogeneity) -> dict[str, Tensor]:
    return {
        quantities.DENSITY.name: result.density,
        quantities.GINI.name: result.gini,
        quantities.TOP_ENERGY.name: result.top_energy,
        quantities.ZERO_FRACTION.name: result.zero_fraction,
        quantities.LOG10_QUANTILES.name: result.log10_quantiles,
    }
