"""What the loss does along single steps: those of steepest descent, and training's own last one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_linf.functional.blocks import (
    block_norm,
    dual_block_norm,
    dual_direction,
)
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.partition import Partition
from lightning_linf.probe.products import HessianProducts, as_rows


def dual_norms(gradient: Tensor, partitions: Sequence[Partition]) -> dict[str, float]:
    """Dual norm of the gradient (d,) for each partition."""
    return {p.name: float(dual_block_norm(gradient, p)) for p in partitions}


def curvatures(
    gradient: Tensor, partitions: Sequence[Partition], products: HessianProducts
) -> dict[str, float]:
    """Curvature v^T H v along each partition's steepest descent v of norm 1, at a product each."""
    values: dict[str, float] = {}
    for first in range(0, len(partitions), products.probes_per_pass):
        together = partitions[first : first + products.probes_per_pass]
        values.update(_curvatures_of_pass(gradient, together, products))
    return values


def _curvatures_of_pass(
    gradient: Tensor, partitions: Sequence[Partition], products: HessianProducts
) -> dict[str, float]:
    """Compute those of one pass; its vectors are gone when the next one begins."""
    directions = as_rows([dual_direction(gradient, partition) for partition in partitions])
    multiplied = products.of_all(directions)
    return {
        partition.name: float(sum_in_pieces(torch.mul, v, product))
        for partition, v, product in zip(partitions, directions, multiplied, strict=True)
    }


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
