"""What the loss does along single steps: those of steepest descent, and training's own last one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import (
    block_norm,
    dual_block_norm,
    dual_direction,
)
from lightning_linf.partition import Partition
from lightning_linf.probe.products import HessianProducts, as_rows


def dual_norms(gradient: Tensor, partitions: Sequence[Partition]) -> dict[str, float]:
    """Dual norm of the gradient (d,) for each partition."""
    return {p.name: float(dual_block_norm(gradient, p)) for p in partitions}


class StepCurvatures(NamedTuple):
    """Curvatures v^T H v along each partition's steepest descent v of norm 1."""

    of_mean: Tensor  # (p,)
    of_batches: Tensor  # (m, p), of the m batches of this rank
    weights: Tensor  # (m,)


def curvatures(
    gradient: Tensor, partitions: Sequence[Partition], products: HessianProducts
) -> StepCurvatures:
    """Measure them at a product each."""
    size = products.probes_per_pass
    passes = [
        _curvatures_of_pass(gradient, partitions[first : first + size], products)
        for first in range(0, len(partitions), size)
    ]
    of_mean, of_batches, weights = zip(*passes, strict=True)
    return StepCurvatures(torch.cat(of_mean), torch.cat(of_batches, dim=1), weights[0])


def _curvatures_of_pass(
    gradient: Tensor, partitions: Sequence[Partition], products: HessianProducts
) -> StepCurvatures:
    """Compute those of one pass; its vectors are gone when the next one begins."""
    rows: list[Tensor] = []
    weights: list[float] = []

    def visit(of_batch: Tensor, weight: float) -> None:
        rows.append(of_batch)
        weights.append(weight)

    directions = as_rows([dual_direction(gradient, partition) for partition in partitions])
    of_mean = products.curvatures(directions, visit)
    return StepCurvatures(of_mean, stacked(rows, of_mean), of_mean.new_tensor(weights))


def stacked(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """Stack rows (p,), of which a rank whose batches another one has, too, has none. (m, p)."""
    return torch.stack(list(rows)) if rows else like.new_zeros(0, len(like))


def secants(
    earlier: Tensor, gradient: Tensor, last_step: Tensor, partitions: Sequence[Partition]
) -> dict[str, float]:
    """Smoothness along a step (d,) that led from the point of an earlier gradient to this one's.

    It is the change of the gradient over the length of the step, in each partition's norms.
    ``earlier`` is overwritten.
    """
    change = earlier.neg_().add_(gradient)
    return {
        p.name: float(dual_block_norm(change, p) / block_norm(last_step, p)) for p in partitions
    }
