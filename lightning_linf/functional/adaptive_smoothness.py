"""Lower end of the adaptive smoothness of a symmetric matrix, with no error but rounding."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import (
    Blocks,
    dual_block_norm,
    dual_direction,
    local_sums_of_blocks,
    require_vector,
)
from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.finite import require_finite
from lightning_linf.functional.in_pieces import local_largest_magnitude, piece_size, pieces_of
from lightning_linf.functional.offload import bring_back, set_aside
from lightning_linf.functional.vector_shards import (
    any_nonzero,
    max_over_shards,
    sum_over_shards,
)

ASCENT_TOL = 1e-3  # relative increase at which an ascent stops


class AdaptiveAscent(NamedTuple):
    """Where an ascent has stopped."""

    value: float  # a lower end of the adaptive smoothness; with one column of N(Phi), too
    increase: float  # relative increase in the last step
    columns: list[Tensor]  # r of shape (d,): the point of that value
    products: list[Tensor]  # r of shape (d,): H times each column
    num_hvps: int


def adaptive_ascent(
    hvp: Callable[[Tensor], Tensor],
    start: Sequence[Tensor],
    blocks: Blocks,
    *,
    max_hvps: int,
    tol: float = ASCENT_TOL,
) -> AdaptiveAscent:
    r"""Bound :math:`\Lambda(\Phi) = \min \{\sum_b d_b s_b : -S \preceq H \preceq S\}` from below.

    S is diagonal and has ``s_b`` on the coordinates of block b; H is symmetric. The multipliers of
    the two constraints are positive semidefinite matrices P and Q, and Lambda is the largest
    ``<P - Q, H>`` of all those whose sum has a trace of at most ``d_b`` on each block b. It is at
    least that, because then ``<P, H> - <Q, H> <= <P + Q, S> <= sum_b d_b s_b``.

    Take two matrices U and V of r columns whose rows in block b have a joint norm, that of
    Frobenius, of at most ``sqrt(d_b)``. Then ``P = (U + V)(U + V)^T / 4`` and
    ``Q = (U - V)(U - V)^T / 4`` are such a pair, as ``P + Q = (U U^T + V V^T) / 2``, and
    ``<P - Q, H> = <U, H V>``. The best U for a V is H V with each block scaled to the norm
    ``sqrt(d_b)``, which gives ``sum_b sqrt(d_b) ||(H V)_b||``. The ascent repeats ``V <- U``. As H
    is symmetric, the value never falls, whatever the signs of its eigenvalues.

    With one column it is the ascent of the operator norm N, and all r columns that are multiples of
    one vector have that vector's value: N <= Lambda. A few columns leave it far less to miss.

    Args:
        hvp: The product with H, from (d,) to (d,).
        start: The r columns where it starts, each of shape (d,), not all zero. They are scaled.
        blocks: A partition of the d coordinates.
        max_hvps: Budget of products, at least r. A step takes r.
        tol: Relative increase of a step at which to stop.

    Returns:
        The value, in the units of H (not divided by d), and where it was reached.

    Raises:
        ValueError: If a shape is wrong, all columns are zero, a product is not finite, or the
            budget is less than one step.

    Source:
        Quantity: Xie, Wang, Wu & Li, arXiv:2511.20584, and Xie, Wang, Reddi, Kumar & Li,
        arXiv:2503.10537, whose S bounds the Hessians at all points, where ours bounds that at one.
        Method: the power method of Boyd (1974) for the factors of Burer & Monteiro (2003). Memory
        during a product: at most 2 r - 1 vectors of shape (d,), all of them
        :func:`~lightning_linf.functional.offload.set_aside` but the one that it multiplies.

    Example:
        >>> from lightning_linf.functional import LabelledBlocks
        >>> coordinates = LabelledBlocks(torch.arange(2))
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> columns = [torch.ones(2), torch.tensor([1.0, -2.0])]
        >>> round(adaptive_ascent(lambda v: H @ v, columns, coordinates, max_hvps=40).value, 2)
        4.0
    """
    for column in start:
        require_vector("adaptive_ascent", "start", column, blocks)
    rank = len(start)
    if not any(any_nonzero(column) for column in start):
        raise ValueError("adaptive_ascent: expected a non-zero `start`. Draw random vectors.")
    if max_hvps < rank:
        raise ValueError(
            f"adaptive_ascent: expected `max_hvps` >= {rank}, one a column, got {max_hvps}."
        )
    device = start[0].device
    columns = [set_aside(column) for column in dual_columns(start, blocks)]
    del start
    value, num_hvps = 0.0, 0
    while True:
        aside = [set_aside(hvp(bring_back(column, device))) for column in columns]
        products = [bring_back(product, device) for product in aside]
        del aside
        num_hvps += rank
        previous, value = value, dual_columns_norm(products, blocks)
        require_finite(value < float("inf"), "adaptive_ascent", "finite products")
        increase = max((value - previous) / value, 0.0) if value else 0.0
        if increase <= tol or num_hvps + rank > max_hvps:
            columns = [bring_back(column, device) for column in columns]
            return AdaptiveAscent(value, increase, columns, products, num_hvps)
        del columns
        columns = [set_aside(column) for column in dual_columns(products, blocks)]
        del products


def dual_columns_norm(columns: Sequence[Tensor], blocks: Blocks) -> float:
    """Compute ``sum_b sqrt(d_b) ||G_b||`` of the matrix G of these columns."""
    if len(columns) == 1:
        return float(dual_block_norm(columns[0], blocks))
    scale, total = _scale(columns), 0.0
    if blocks.num_blocks == blocks.num_params:
        total = sum(float(_row_norms(columns, part, scale).sum()) for part in _pieces(columns))
        total = float(sum_over_shards(scale.new_tensor(total)))
    else:
        norms = _block_norms(columns, scale, blocks)
        total = float((norms * blocks.sizes(norms).sqrt()).sum())
    return total * float(scale)


def dual_columns(columns: Sequence[Tensor], blocks: Blocks) -> list[Tensor]:
    """Scale the rows of each block to the joint norm ``sqrt(d_b)``; zero ones stay. New tensors.

    The columns are those of a matrix (d, r), and the norm is that of Frobenius.
    """
    if len(columns) == 1:
        return [dual_direction(columns[0], blocks)]
    scale = _scale(columns)
    dtype = torch.promote_types(columns[0].dtype, torch.float32)
    results = [torch.empty_like(column, dtype=dtype) for column in columns]
    if blocks.num_blocks == blocks.num_params:
        for part in _pieces(columns):
            norms = _row_norms(columns, part, scale)
            factors = torch.where(norms == 0, 0.0, 1 / norms)
            for column, result in zip(columns, results, strict=True):
                result[part] = (column[part].to(norms.dtype) / scale).mul_(factors)
        return results
    norms = _block_norms(columns, scale, blocks)
    factors = torch.where(norms == 0, 0.0, blocks.sizes(norms).sqrt() / norms)  # (B,)
    for part, piece in blocks.pieces(piece_size(len(columns[0]))):
        expanded = piece.expand(factors[piece.first : piece.first + piece.num_blocks])
        for column, result in zip(columns, results, strict=True):
            result[part] = (column[part].to(norms.dtype) / scale).mul_(expanded)
    return results


def _scale(columns: Sequence[Tensor]) -> Tensor:
    """Give the largest entry, or 1 where it is no number to divide by. Shape: ()."""
    largest = torch.stack([local_largest_magnitude(column) for column in columns]).max()
    largest = max_over_shards(largest).to(wide_dtype(columns[0]))
    return torch.where((largest > 0) & largest.isfinite(), largest, 1.0)


def _pieces(columns: Sequence[Tensor]) -> list[slice]:
    return list(pieces_of(len(columns[0])))


def _row_norms(columns: Sequence[Tensor], part: slice, scale: Tensor) -> Tensor:
    """Compute the norm of each row of a part, over the scale."""
    total = torch.zeros_like(columns[0][part], dtype=scale.dtype)
    for column in columns:
        total += (column[part].to(scale.dtype) / scale).square_()
    return total.sqrt_()


def _block_norms(columns: Sequence[Tensor], scale: Tensor, blocks: Blocks) -> Tensor:
    """Compute the joint norm of each block's rows, over the scale. Shape: (B,)."""
    squares = [
        local_sums_of_blocks(lambda values: values.div_(scale).square_(), column, blocks)
        for column in columns
    ]
    return sum_over_shards(torch.stack(squares).sum(dim=0)).sqrt_()
