"""The norm of a partition into blocks, its dual norm, and the direction in which they meet."""

from typing import Protocol

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype


class Blocks(Protocol):
    """The protocol of a partition of d coordinates into B blocks, block b with d_b of them.

    :class:`lightning_linf.Partition` follows it, and for vectors of no module
    :class:`LabelledBlocks`.
    """

    @property
    def name(self) -> str:
        """Name of the partition, as it is reported."""

    @property
    def num_params(self) -> int:
        """Number of coordinates d."""

    @property
    def num_blocks(self) -> int:
        """Number of blocks B."""

    def block_sum(self, values: Tensor) -> Tensor:
        """Add the entries of each block. Shapes: (..., d) -> (..., B)."""

    def expand(self, values: Tensor) -> Tensor:
        """Give each coordinate its block's value. Shapes: (..., B) -> (..., d)."""

    def sizes(self, like: Tensor) -> Tensor:
        """Numbers d_b, with the dtype and device of ``like``. Shape: (B,)."""


class LabelledBlocks:
    """Blocks given by the number of each coordinate's block.

    Args:
        labels: For each coordinate the number of its block, from 0 to B - 1. Shape: (d,), int64.
        name: Name of the partition, as it is reported.

    Example:
        >>> blocks = LabelledBlocks(torch.tensor([0, 1, 0]))
        >>> blocks.block_sum(torch.tensor([1.0, 2.0, 3.0]))
        tensor([4., 2.])
    """

    def __init__(self, labels: Tensor, name: str = "labelled") -> None:
        self.labels, self.name = labels, name
        self.num_params, self.num_blocks = len(labels), int(labels.max()) + 1

    def block_sum(self, values: Tensor) -> Tensor:
        """Add the entries of each block. Shapes: (..., d) -> (..., B)."""
        zeros = values.new_zeros(*values.shape[:-1], self.num_blocks)
        return zeros.index_add(-1, self.labels, values)

    def expand(self, values: Tensor) -> Tensor:
        """Give each coordinate its block's value. Shapes: (..., B) -> (..., d)."""
        return values[..., self.labels]

    def sizes(self, like: Tensor) -> Tensor:
        """Numbers d_b, with the dtype and device of ``like``. Shape: (B,)."""
        return torch.bincount(self.labels, minlength=self.num_blocks).to(like)


def block_norm(x: Tensor, blocks: Blocks) -> Tensor:
    r"""Measure a step: :math:`\|x\|_\Phi = \max_b \|x_b\|_2 / \sqrt{d_b}`.

    One entry per block makes it the l-infinity norm, one block the 2-norm over ``sqrt(d)``.

    Args:
        x: Shape (d,), any real floating dtype. Infinite and NaN entries go into the result.
        blocks: A partition of the d coordinates.

    Returns:
        A scalar, float32 or wider. Sums are float64 (float32 on MPS) and scaled, so that squares
        neither overflow nor underflow.

    Raises:
        ValueError: If ``x`` has another shape than (d,).

    Source:
        Norm of blockwise Adam: Xie, Mohamadi & Li, arXiv:2410.08198. Cost: two passes over ``x``.

    Example:
        >>> pairs = LabelledBlocks(torch.tensor([0, 0, 1, 1]))
        >>> round(float(block_norm(torch.tensor([3.0, 4.0, 1.0, 0.0]), pairs)), 4)
        3.5355
    """
    require_vector("block_norm", "x", x, blocks)
    dtype = _result_dtype(x)
    if blocks.num_blocks == blocks.num_params:
        return x.abs().amax().to(dtype)
    norms, scale = _scaled_norms(x, blocks)
    return ((norms / blocks.sizes(norms).sqrt()).amax() * scale).to(dtype)


def dual_block_norm(g: Tensor, blocks: Blocks) -> Tensor:
    r"""Measure a gradient: :math:`\sum_b \sqrt{d_b} \|g_b\|_2`, the dual of :func:`block_norm`.

    It is the largest ``<g, v>`` over all ``v`` of block norm 1. One entry per block makes it the
    1-norm, one block ``sqrt(d)`` times the 2-norm.

    Args:
        g: Shape (d,), any real floating dtype. Infinite and NaN entries go into the result.
        blocks: A partition of the d coordinates.

    Returns:
        A scalar, float32 or wider. Sums are float64 (float32 on MPS) and scaled, so that squares
        neither overflow nor underflow.

    Raises:
        ValueError: If ``g`` has another shape than (d,).

    Source:
        Xie, Mohamadi & Li, arXiv:2410.08198. Cost: two passes over ``g``.
    """
    require_vector("dual_block_norm", "g", g, blocks)
    dtype = _result_dtype(g)
    if blocks.num_blocks == blocks.num_params:
        return g.abs().sum(dtype=wide_dtype(g)).to(dtype)
    norms, scale = _scaled_norms(g, blocks)
    return ((norms * blocks.sizes(norms).sqrt()).sum() * scale).to(dtype)


def dual_direction(g: Tensor, blocks: Blocks) -> Tensor:
    r"""Find the ``v`` of block norm 1 with the largest ``<g, v>``, the dual norm of g.

    It is the direction of steepest ascent, :math:`v_b = \sqrt{d_b} g_b / \|g_b\|_2`: the sign of g
    if each block has one entry, and :math:`\sqrt{d} g / \|g\|_2` if there is one block.

    Args:
        g: Shape (d,), any real floating dtype.
        blocks: A partition of the d coordinates.

    Returns:
        A maximiser, shape (d,), float32 or wider. It is 0 in blocks where g is 0, where any
        direction would do, and in those whose norm is below 1e-154 (MPS: 1e-19) of the largest
        entry.

    Raises:
        ValueError: If ``g`` has another shape than (d,).

    Source:
        Steepest descent in the norm of Xie, Mohamadi & Li, arXiv:2410.08198. Cost: three passes
        over ``g``.
    """
    require_vector("dual_direction", "g", g, blocks)
    dtype = _result_dtype(g)
    if blocks.num_blocks == blocks.num_params:
        return g.sign().to(dtype)
    norms, scale = _scaled_norms(g, blocks)
    factors = torch.where(norms == 0, 0.0, blocks.sizes(norms).sqrt() / norms)
    return (g.to(norms.dtype) / scale * blocks.expand(factors)).to(dtype)


def _scaled_norms(x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Compute the 2-norm of each block (B,), divided by a scale (), and that scale."""
    wide = x.detach().to(wide_dtype(x))
    largest = wide.abs().amax()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return blocks.block_sum((wide / scale).square()).sqrt(), scale


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def require_vector(function: str, argument: str, x: Tensor, blocks: Blocks) -> None:
    """Raise a ValueError unless ``x`` is a vector of the coordinates that blocks divide."""
    if x.shape != (blocks.num_params,):
        raise ValueError(
            f"{function}: expected `{argument}` of shape ({blocks.num_params},), got "
            f"{tuple(x.shape)}. Pass the vector that the partition {blocks.name!r} divides."
        )
