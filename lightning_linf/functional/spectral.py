"""The geometry of Muon: the spectral norm of matrices, and l-infinity of all other tensors."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.finite import all_finite, require_finite
from lightning_linf.functional.full_precision import full_float32_precision
from lightning_linf.functional.in_pieces import local_largest_magnitude, local_sum_in_pieces
from lightning_linf.functional.vector_shards import (
    max_over_shards,
    num_here,
    shards_of_vectors,
    stretches_here,
    sum_over_shards,
)

ASCENT_TOL = 1e-3  # of the lower end, relative: then the ascent has come to rest


@dataclass(frozen=True)
class MatrixSplit:
    """Which parts of a vector of d numbers are matrices.

    Where vectors are shards, every rank gathers one matrix after the other, all of it, and
    decomposes it: that takes memory for the largest matrix, and a message of the size of each.

    Args:
        shapes: Shapes of the tensors that the vector joins, in order.
        are_matrices: For each whether it counts as a matrix; only two dimensions can.

    Raises:
        ValueError: If a tensor that is said to be a matrix has other than two dimensions.
    """

    shapes: tuple[torch.Size, ...]
    are_matrices: tuple[bool, ...]

    def __post_init__(self) -> None:
        for shape, is_matrix in zip(self.shapes, self.are_matrices, strict=True):
            if is_matrix and len(shape) != 2:
                raise ValueError(
                    "MatrixSplit: expected matrices of two dimensions, got the shape "
                    f"{tuple(shape)}. View it as a matrix, or let it be none."
                )

    @property
    def num_params(self) -> int:
        """Number of coordinates d."""
        return sum(shape.numel() for shape in self.shapes)

    def parts(self, vector: Tensor) -> Iterator[Tensor]:
        """Cut a vector (d,) into its matrices, and a vector for every other tensor, in order.

        Where vectors are shards, the entries that are here are taken for a vector.
        """
        is_shard = shards_of_vectors() is not None
        pieces = vector.split_with_sizes([len(here) for here in self._stretches()])
        for part, shape, is_matrix in zip(pieces, self.shapes, self.are_matrices, strict=True):
            if shape.numel():
                yield part.view(shape) if is_matrix and not is_shard else part

    def gathered(self, vector: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Give matrices whole, one after the other, and vectors for the other tensors as they are.

        Yields:
            The matrix, a new one if vectors are shards, or the vector; and which of the entries of
            the flattened matrix are here.
        """
        places = zip(self.shapes, self.are_matrices, self._stretches(), strict=True)
        used = (place for place in places if place[0].numel())
        for part, (shape, is_matrix, here) in zip(self.parts(vector), used, strict=True):
            if is_matrix and shards_of_vectors() is not None:
                whole = part.new_zeros(shape.numel())
                whole[here.start : here.stop] = part
                yield sum_over_shards(whole).view(shape), slice(here.start, here.stop)
            else:
                yield part, slice(0, part.numel())

    def _stretches(self) -> list[range]:
        return stretches_here([shape.numel() for shape in self.shapes])


def spectral_norm(x: Tensor, split: MatrixSplit) -> Tensor:
    r"""Measure a step: the largest norm of its tensors.

    That of a matrix W of m rows and n columns is :math:`\sigma_{\max}(W) / \sqrt{\max(m, n)}`, that
    of any other tensor its largest magnitude. So a step of norm 1 whose matrices have equal
    singular values has a 2-norm of :math:`\sqrt d`, as one of signs has.

    Args:
        x: Shape (d,), any real floating dtype.
        split: Which parts of it are matrices.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If ``x`` has another shape than (d,), or is not finite.

    Source:
        Muon as steepest descent in the spectral norm: Bernstein & Newhouse, arXiv:2409.20325. Their
        factor for each tensor is another one; this one makes norms comparable with
        :func:`~lightning_linf.functional.block_norm`. Cost: a singular value decomposition of each
        matrix.

    Example:
        >>> split = MatrixSplit((torch.Size([2, 2]), torch.Size([1])), (True, False))
        >>> float(spectral_norm(torch.tensor([2.0, 0.0, 0.0, 8.0, 3.0]), split))  # 8 / sqrt(2)
        5.656854152679443
    """
    dtype = _working_dtype(x)
    norms = [
        torch.linalg.matrix_norm(part.to(dtype), 2) / _root(part)
        if part.ndim == 2
        else local_largest_magnitude(part).to(dtype)
        for part, _ in split.gathered(_checked("spectral_norm", x, split))
    ]
    return max_over_shards(torch.stack(norms).amax())


class SpectralDual(NamedTuple):
    """The dual norm of a vector, and the direction in which it is reached."""

    norm: Tensor  # ()
    direction: Tensor  # (d,)


def spectral_dual(g: Tensor, split: MatrixSplit) -> SpectralDual:
    r"""Measure a gradient, and find the ``v`` of norm 1 with the largest ``<g, v>``.

    For a matrix :math:`G = U \Sigma V^\top` these are :math:`\sqrt{\max(m, n)}` times the nuclear
    norm :math:`\sum_i \sigma_i`, and :math:`\sqrt{\max(m, n)}` times the polar factor
    :math:`U V^\top`, which is Muon's direction; for any other tensor the 1-norm and the signs. The
    dual norm of g is their sum, ``<g, v>``.

    Args:
        g: Shape (d,), any real floating dtype.
        split: Which parts of it are matrices.

    Returns:
        The dual norm of :func:`spectral_norm`, a scalar in float64 (MPS: float32), and a maximiser,
        shape (d,), float32 or wider. Singular values below ``max(m, n) eps`` of the largest one are
        rounding, as in :func:`torch.linalg.matrix_rank`, and v is 0 along them, where any direction
        would do.

    Raises:
        ValueError: If ``g`` has another shape than (d,), or is not finite.

    Source:
        Bernstein & Newhouse, arXiv:2409.20325; see :func:`spectral_norm` for the factors. Cost: a
        singular value decomposition of each matrix, and memory for one at a time.

    Example:
        >>> split = MatrixSplit((torch.Size([2, 2]),), (True,))
        >>> dual = spectral_dual(torch.tensor([3.0, 0.0, 0.0, -1.0]), split)
        >>> round(float(dual.norm), 4), (dual.direction / 2**0.5).round(decimals=4).tolist()
        (5.6569, [1.0, 0.0, 0.0, -1.0])
    """
    g = _checked("spectral_dual", g, split)
    direction = torch.zeros(len(g), dtype=_working_dtype(g), device=g.device)
    shards, wide = shards_of_vectors(), wide_dtype(g)
    norms = []  # what each tensor adds
    for (part, here), place in zip(split.gathered(g), split.parts(direction), strict=True):
        if part.ndim != 2:
            place.copy_(part.sign())
            norms.append(local_sum_in_pieces(torch.abs, part))
            continue
        u, sigma, vh = torch.linalg.svd(part.to(place.dtype), full_matrices=False)
        rounding = max(part.shape) * torch.finfo(sigma.dtype).eps * sigma[0]
        with full_float32_precision():
            if shards is None:
                torch.mm(u * (sigma > rounding), vh, out=place)
            else:
                place.copy_(torch.mm(u * (sigma > rounding), vh).view(-1)[here])
        place.mul_(_root(part))
        is_counted = shards is None or shards.rank == 0  # all ranks have the matrix
        norms.append(_root(part) * sigma.sum(dtype=wide) * is_counted)
    total = g.new_zeros((), dtype=wide)
    for norm in sum_over_shards(torch.stack(norms)):
        total += norm
    return SpectralDual(total, direction)


class SpectralAscent(NamedTuple):
    """A lower end of the operator norm, and how it was found."""

    lower: float
    increase: float  # by how much the last product raised it, relative; inf after one product
    num_hvps: int


def spectral_ascent(
    hvp: Callable[[Tensor], Tensor], start: Tensor, split: MatrixSplit, *, max_hvps: int = 8
) -> SpectralAscent:
    r"""Raise a lower end of :math:`N = \max \|H v\|_*` over all v of spectral norm 1.

    Repeats ``v <- spectral_dual(H v).direction``, which never lowers the dual norm of ``H v``,
    whatever signs the eigenvalues of a symmetric H have. It may end below N, at a local maximum.

    Args:
        hvp: Multiplies H with a vector (d,).
        start: The first direction is that of the dual norm of this vector (d,).
        split: Which parts of it are matrices.
        max_hvps: Most products, at least 1.

    Raises:
        ValueError: If ``max_hvps`` is below 1, or a product is not finite.

    Source:
        The ascent of :func:`~lightning_linf.functional.operator_norm` in another norm. Cost: a
        product and a singular value decomposition of each matrix for each round.

    Example:
        >>> split = MatrixSplit((torch.Size([2, 2]),), (True,))
        >>> H = torch.diag(torch.tensor([4.0, 1.0, 1.0, 2.0]))
        >>> ascent = spectral_ascent(lambda v: H @ v, torch.tensor([1.0, 0.0, 0.0, 1.0]), split)
        >>> round(ascent.lower, 3)  # at sqrt(2) times the identity
        12.0
    """
    if max_hvps < 1:
        raise ValueError(
            f"spectral_ascent: expected `max_hvps` >= 1, got {max_hvps}. Allow a product."
        )
    direction = spectral_dual(start, split).direction
    lower, increase = 0.0, math.inf
    for num_hvps in range(1, max_hvps + 1):
        previous = lower
        norm, direction = spectral_dual(hvp(direction), split)
        lower = max(previous, float(norm))  # it can fall by rounding alone
        increase = (lower - previous) / previous if previous else math.inf
        if not lower:
            increase = 0.0
        if increase <= ASCENT_TOL or num_hvps == max_hvps:
            break
    return SpectralAscent(lower, increase, num_hvps)


def _checked(function: str, vector: Tensor, split: MatrixSplit) -> Tensor:
    if vector.shape != (num_here(split.num_params),):
        raise ValueError(
            f"{function}: expected a vector of shape ({num_here(split.num_params)},), got "
            f"{tuple(vector.shape)}. Pass the vector whose tensors are listed."
        )
    require_finite(all_finite(vector.detach()), function, "finite entries")
    return vector.detach()


def _working_dtype(vector: Tensor) -> torch.dtype:
    return torch.promote_types(vector.dtype, torch.float32)


def _root(matrix: Tensor) -> float:
    return math.sqrt(max(matrix.shape))
