"""The norm of a partition into blocks, its dual norm, and the direction in which they meet."""

import copy
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.in_pieces import largest_magnitude, piece_size, sum_in_pieces
from lightning_linf.functional.vector_shards import num_here, sum_over_shards


class BlocksOfPiece(Protocol):
    """How neighbouring coordinates fall into neighbouring blocks of a partition."""

    @property
    def first(self) -> int:
        """Number of the first of these blocks in the partition."""

    @property
    def num_blocks(self) -> int:
        """How many blocks these are."""

    def block_sum(self, values: Tensor) -> Tensor:
        """Add the entries of each block. Shapes: (..., entries) -> (..., num_blocks)."""

    def expand(self, values: Tensor) -> Tensor:
        """Give each coordinate its block's value. Shapes: (..., num_blocks) -> (..., entries)."""


class Blocks(Protocol):
    """The protocol of a partition of d coordinates into B blocks, block b with d_b of them.

    :class:`lightning_linf.Partition` follows it, and for vectors of no module
    :class:`LabelledBlocks`. Where vectors are shards
    (:func:`~lightning_linf.functional.vector_shards.sharing_vectors`), what :meth:`block_sum` gives
    is the sum over all ranks, the same on all of them, and pieces are of the entries that are here.
    A partition that is the identity has vectors of d numbers for both, and then both are shards.
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

    @property
    def is_identity(self) -> bool:
        """Whether every coordinate is a block, and has its own number as the number of it."""

    def block_sum(self, values: Tensor) -> Tensor:
        """Add the entries of each block. Shapes: (..., d) -> (..., B)."""

    def expand(self, values: Tensor) -> Tensor:
        """Give each coordinate its block's value. Shapes: (..., B) -> (..., d)."""

    def sizes(self, like: Tensor) -> Tensor:
        """Numbers d_b, with the dtype and device of ``like``. Shape: (B,)."""

    def pieces(self, most: int) -> Iterator[tuple[slice, BlocksOfPiece]]:
        """Cut the coordinates into pieces of at most ``most`` (or one entry of each block)."""


class LabelledBlocks:
    """Blocks given by the number of each coordinate's block.

    Args:
        labels: For each coordinate the number of its block, from 0 to B - 1. Shape: (d,), int64.
        name: Name of the partition, as it is reported.

    Raises:
        ValueError: If a number from 0 to the largest is not there, or one is negative.

    Example:
        >>> blocks = LabelledBlocks(torch.tensor([0, 1, 0]))
        >>> blocks.block_sum(torch.tensor([1.0, 2.0, 3.0]))
        tensor([4., 2.])
    """

    first = 0  # the number of the first block that a piece has entries of
    is_identity = False

    def __init__(self, labels: Tensor, name: str = "labelled") -> None:
        numbers = torch.unique(labels)
        if not torch.equal(numbers, torch.arange(len(numbers), device=numbers.device)):
            raise ValueError(
                f"LabelledBlocks: expected `labels` with every number from 0 to B - 1, got "
                f"{len(numbers)} different ones from {int(numbers[0])} to {int(numbers[-1])}. "
                "Number them anew: labels.unique(return_inverse=True)[1]."
            )
        self.labels, self.name = labels, name
        self.num_params, self.num_blocks = len(labels), len(numbers)

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

    def pieces(self, most: int) -> Iterator[tuple[slice, "LabelledBlocks"]]:
        """Cut the coordinates into pieces of at most ``most``, which keep the numbers of blocks."""
        for start in range(0, self.num_params, most):
            part = slice(start, min(start + most, self.num_params))
            piece = copy.copy(self)
            piece.labels = self.labels[part]
            piece.num_params = len(piece.labels)
            yield part, piece


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
        return largest_magnitude(x).to(dtype)
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
        return sum_in_pieces(torch.abs, g).to(dtype)
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
    factors = torch.where(norms == 0, 0.0, blocks.sizes(norms).sqrt() / norms)  # (B,)
    direction = torch.empty_like(g, dtype=dtype, memory_format=torch.contiguous_format)
    for part, piece in blocks.pieces(piece_size(len(g))):
        values = g[part].to(norms.dtype) / scale
        direction[part] = values.mul_(piece.expand(factors[_numbers(piece)]))
    return direction


def sums_of_blocks(
    function: Callable[..., Tensor], x: Tensor, blocks: Blocks, *others: Tensor
) -> Tensor:
    """Add up a function of the entries of each block, computed for a piece of ``x`` at a time.

    Of vectors that are shards these are the sums over all ranks.

    Args:
        function: Applied to pieces of ``x`` and ``others``, in float64 (float32 on MPS); it may
            change them.
        x: Shape (d,).
        blocks: A partition of the d coordinates, with fewer blocks than coordinates.
        others: Further arguments of the function, of the shape of ``x``.

    Returns:
        The sums, float64 (float32 on MPS). Shape: (B,).
    """
    return sum_over_shards(local_sums_of_blocks(function, x, blocks, *others))


def local_sums_of_blocks(
    function: Callable[..., Tensor], x: Tensor, blocks: Blocks, *others: Tensor
) -> Tensor:
    """Do what :func:`sums_of_blocks` does for the entries of this rank alone."""
    wide = wide_dtype(x)
    sums = x.new_zeros(blocks.num_blocks, dtype=wide)
    for part, piece in blocks.pieces(piece_size(len(x))):
        values = function(*(each[part].to(wide, copy=True) for each in (x, *others)))
        sums[_numbers(piece)] += piece.block_sum(values)
    return sums


def num_values(blocks: Blocks) -> int:
    """How many numbers by block are here: B, or those of a shard where blocks are coordinates."""
    return num_here(blocks.num_blocks) if blocks.is_identity else blocks.num_blocks


def sum_over_blocks(values: Tensor, blocks: Blocks) -> Tensor:
    """Add up numbers of all blocks. Shapes: (B,) -> ()."""
    return sum_over_shards(values.sum()) if blocks.is_identity else values.sum()


def _numbers(piece: BlocksOfPiece) -> slice:
    """Give the numbers of the blocks that a piece has entries of."""
    return slice(piece.first, piece.first + piece.num_blocks)


def _scaled_norms(x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Compute the 2-norm of each block (B,), divided by a scale (), and that scale."""
    x = x.detach()
    largest = largest_magnitude(x).to(wide_dtype(x))
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return sums_of_blocks(lambda values: values.div_(scale).square_(), x, blocks).sqrt(), scale


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def require_vector(function: str, argument: str, x: Tensor, blocks: Blocks) -> None:
    """Raise a ValueError unless ``x`` is a vector of the coordinates that blocks divide."""
    if x.shape != (num_here(blocks.num_params),):
        raise ValueError(
            f"{function}: expected `{argument}` of shape ({num_here(blocks.num_params)},), got "
            f"{tuple(x.shape)}. Pass the vector that the partition {blocks.name!r} divides."
        )
