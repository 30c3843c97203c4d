"""What the loss did along training's own last step, to second order."""

import torch
from torch import Tensor

from lightning_linf.functional.in_pieces import local_sum_in_pieces
from lightning_linf.functional.vector_shards import sizes_here, sum_over_shards
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.products import HessianProducts
from lightning_linf.report import StepReport


def measure_last_step(
    gradient: Tensor, last_step: Tensor, vector: ParameterVector, products: HessianProducts
) -> tuple[StepReport, dict[str, StepReport]]:
    r"""Measure slope and curvature of the loss along a step D that led to the present point.

    Both are taken at this point, theta', which costs one product and no further gradient. With
    :math:`L(\theta' - D) = L(\theta') - g \cdot D + D \cdot H D / 2 + \dots` the change of the loss
    is known up to the third order. Slope and curvature are sums over entries of :math:`g_i D_i` and
    :math:`D_i (H D)_i`, so they split exactly by tensor; a tensor's curvature holds its share of
    what the tensors' parts of the step did to each other.

    Args:
        gradient: Of the loss at theta', shape (d,).
        last_step: theta' minus theta, shape (d,).
        vector: The parameters, which say what the tensors are.
        products: With the Hessian at theta'.

    Returns:
        Of all parameters together, and of each tensor.
    """
    slopes = _by_tensor(gradient, last_step, vector.sizes)
    curvatures = _by_tensor(last_step, products.of_all(last_step), vector.sizes)
    parts = zip(vector.names, slopes.tolist(), curvatures.tolist(), strict=True)
    per_tensor = {name: StepReport(slope, curvature) for name, slope, curvature in parts}
    return StepReport(float(slopes.sum()), float(curvatures.sum())), per_tensor


def _by_tensor(a: Tensor, b: Tensor, sizes: list[int]) -> Tensor:
    """Add up the products of the entries of two vectors (d,) in each tensor. Shape: (T,)."""
    parts = (vector.split_with_sizes(sizes_here(sizes)) for vector in (a, b))
    pairs = zip(*parts, strict=True)
    return sum_over_shards(torch.stack([local_sum_in_pieces(torch.mul, x, y) for x, y in pairs]))
