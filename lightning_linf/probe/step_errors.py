"""What the choice of batches leaves open of the advantage along the gradient's own steps."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_linf.functional.blocks import dual_direction
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.step_error import step_error_compute, step_error_update
from lightning_linf.partition import Partition
from lightning_linf.probe.along_steps import StepCurvatures, stacked
from lightning_linf.probe.landscape import Landscape


def step_errors(
    landscape: Landscape,
    gradient: Tensor,
    partitions: Sequence[Partition],
    dual_norm: Mapping[str, float],
    along: StepCurvatures,
) -> dict[str, float]:
    """Estimate the errors of the advantages over "global", at one gradient of each batch.

    Args:
        landscape: Inside its ``with``, with two batches or more on all ranks together.
        gradient: Of its mean loss. Shape (d,).
        partitions: "global" among them.
        dual_norm: Of the gradient, by partition.
        along: The curvatures along the steps that the gradient chooses.
    """
    ranks = landscape.batch_ranks
    whole = ranks.sum(along.weights.sum())
    rows = slopes_of_others_steps(landscape, gradient, partitions, float(whole))
    slopes = stacked(rows, along.of_mean)
    sums = ranks.sum(step_error_update(slopes, along.of_batches, along.weights))
    names = [partition.name for partition in partitions]
    norms = sums.new_tensor([dual_norm[name] for name in names])
    errors = step_error_compute(sums, norms, names.index("global"))
    return dict(zip(names, errors.tolist(), strict=True))


def slopes_of_others_steps(
    landscape: Landscape, gradient: Tensor, partitions: Sequence[Partition], weight: float
) -> list[Tensor]:
    """Slope of each batch's loss along the steps of norm 1 that all others choose, m of (p,).

    Args:
        landscape: Inside its ``with``.
        gradient: Of the mean loss. Shape (d,).
        partitions: Each has a step of its own.
        weight: Of all batches of all ranks.
    """
    rows: list[Tensor] = []

    def visit(of_batch: Tensor, weight_of_batch: float) -> None:
        # The mean of the others, times a positive number, of which their steps do not depend.
        others = torch.sub(gradient, of_batch, alpha=weight_of_batch / weight)
        steps = (dual_direction(others, partition) for partition in partitions)
        rows.append(torch.stack([sum_in_pieces(torch.mul, of_batch, step) for step in steps]))

    landscape.each_gradient(visit)
    return rows
