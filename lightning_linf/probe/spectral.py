"""The geometry of Muon on a loss landscape: its step along the gradient, and its smoothness."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.spectral import MatrixSplit, spectral_ascent, spectral_dual
from lightning_linf.partition import Partition, hidden_matrices
from lightning_linf.partition.pieces import trainable_parameters
from lightning_linf.probe.products import HessianProducts
from lightning_linf.report import BlockSmoothness, SpectralSmoothness

ASCENT_HVPS = 8  # most products of the lower end
SPECTRAL_HVPS = ASCENT_HVPS + 1  # and one along the gradient's own step


def split_matrices(
    module: nn.Module, parameters: Collection[nn.Parameter] | None = None
) -> MatrixSplit:
    """Find the hidden matrices among the parameters of a landscape.

    Args:
        module: Not inside a landscape, where it has other parameters.
        parameters: Of the trainable parameters only these. Default: all.

    Raises:
        ValueError: If there is none.
    """
    named, matrices = trainable_parameters(module, parameters), set(hidden_matrices(module))
    split = MatrixSplit(
        tuple(p.shape for p in named.values()), tuple(name in matrices for name in named)
    )
    if not any(split.are_matrices):
        raise ValueError(
            'measure_geometry: expected a trainable hidden matrix for "spectral", got none in '
            f"{type(module).__name__} (hidden_matrices lists them). Leave it out."
        )
    return split


class SpectralStep(NamedTuple):
    """Numbers of the step of spectral norm 1 that descends most steeply."""

    dual_norm: float
    curvature: float  # v^T H v along it


def measure_spectral_step(
    gradient: Tensor, split: MatrixSplit, products: HessianProducts
) -> SpectralStep:
    """Measure the steepest descent along a gradient (d,), at one product."""
    dual_norm, direction = spectral_dual(gradient, split)
    product = products.of_all(direction)
    return SpectralStep(float(dual_norm), float(sum_in_pieces(torch.mul, direction, product)))


def bracket_spectral(
    start: Tensor,
    split: MatrixSplit,
    products: HessianProducts,
    partitions: Sequence[Partition],
    smoothness: Mapping[str, BlockSmoothness],
) -> SpectralSmoothness:
    """Measure N of the spectral geometry, at up to ``ASCENT_HVPS`` products.

    Its lower end is what an ascent from the vector ``start`` (d,) reaches. As no matrix of norm 1
    has a 2-norm above the root of its number of entries, no step of norm 1 is longer than 1 in a
    partition into whole tensors, and the upper ends of those hold here, too. "global" is one.
    """
    ascent = spectral_ascent(products.of_all, start, split, max_hvps=ASCENT_HVPS)
    of_tensors = [
        partition.name
        for partition in partitions
        if all(layout.num_blocks <= 1 for layout in partition.layouts)
    ]
    upper = min(smoothness[name].operator_upper for name in of_tensors)
    return SpectralSmoothness(
        num_matrices=sum(split.are_matrices),
        lower=ascent.lower,
        operator_upper=max(upper, ascent.lower),  # where they meet, rounding may put it below
        lower_increase=ascent.increase,
        num_hvps=ascent.num_hvps,
    )
