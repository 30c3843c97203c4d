"""Largest absolute eigenvalue of a symmetric operator, between two bounds, by Lanczos."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.finite import require_finite
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.offload import bring_back, set_aside
from lightning_linf.functional.spectrum_end import FAILURE, least_mass, spectrum_end
from lightning_linf.functional.vector_shards import dot, num_entries, two_norm

NUM_KEPT = 8  # basis vectors: after so many steps the largest eigenvalue is known to 1 % or so


class LambdaMax(NamedTuple):
    """The eigenvalue of largest magnitude, and how well it is known."""

    value: float  # a lower bound of max |lambda|, in the units of the operator
    residual: float  # value + residual is an upper bound, with a probability of 1 - FAILURE
    num_hvps: int


@dataclass(frozen=True)
class Lanczos:
    """What k products with a symmetric operator tell of its eigenvalues.

    Of the positive end, ``value`` and ``upper`` are of the largest ones, with their signs.
    """

    value: float  # largest magnitude of a Ritz value; at most that of an eigenvalue
    upper: float  # an upper bound of the largest |eigenvalue|, with a probability of 1 - FAILURE
    num_hvps: int  # k
    values: Tensor  # (m,) float64: Ritz values of the first m <= k steps, whose vectors are kept
    vectors: Tensor  # (m, m) float64: their vectors, as columns, in the coordinates of the basis
    basis: Sequence[Tensor]  # m orthonormal vectors (d,), set aside, in half the bytes if float32
    like: Tensor  # empty, with dtype and device of the vectors that they are combined to

    @property
    def extreme(self) -> int:
        """Index of the kept value of largest magnitude."""
        return int(self.values.abs().argmax())

    def ritz_vector(self, index: int) -> Tensor:
        """Approximate eigenvector of ``values[index]``, shape (d,)."""
        return self.combine(self.vectors[:, index])

    def combine(self, coefficients: Tensor) -> Tensor:
        """Sum of the basis vectors times coefficients (m,). Shape: (d,)."""
        result = self.like.new_zeros(self.basis[0].shape)
        for vector, coefficient in zip(self.basis, coefficients.tolist(), strict=True):
            result.add_(bring_back(vector, result.device), alpha=coefficient)
        return result


def lambda_max(
    hvp: Callable[[Tensor], Tensor], start: Tensor, *, max_hvps: int = 64, tol: float = 1e-2
) -> LambdaMax:
    r"""Compute :math:`\max_i |\lambda_i|` of a symmetric operator by Lanczos iteration.

    The largest magnitude is never below ``value``, and above ``value + residual`` with a
    probability of at most ``FAILURE`` = 0.25 % over random starts, however close to each other the
    eigenvalues are. (The usual residual of the eigenvalue equation only says that *some* eigenvalue
    is near.) The iteration stops once the residual is at most ``tol`` times the value, or after
    ``max_hvps`` products. It needs no least number of them: with few the residual is large.

    Args:
        hvp: The operator, from (d,) to (d,).
        start: A standard normal random vector, shape (d,); with another the probability does not
            hold.
        max_hvps: Budget of products, at least 1.
        tol: Residual over value at which to stop.

    Returns:
        Value, residual (absolute) and the number of products spent.

    Raises:
        ValueError: If ``start`` is zero or not 1-D, a product is not finite, or the budget is < 1.

    Source:
        Lanczos iteration, Parlett, The Symmetric Eigenvalue Problem (1998), ch. 13. Upper bound:
        :func:`~lightning_linf.functional.spectrum_end.spectrum_end`; it takes the products as they
        came out, and so is below the worst case of Kuczynski & Wozniakowski, SIAM J. Matrix Anal.
        Appl. 13 (1992). There is no reorthogonalisation, so three vectors of memory are enough:
        rounding then repeats converged eigenvalues but moves none (Paige 1980), which is harmless
        for the largest.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
        >>> round(lambda_max(lambda v: H @ v, torch.tensor([0.4, -1.1, 0.7])).value, 3)
        3.0
    """
    if max_hvps < 1:
        raise ValueError(f"lambda_max: expected `max_hvps` >= 1, got {max_hvps}.")
    norm = two_norm(start) if start.ndim == 1 else start.new_zeros(())
    if not norm > 0:
        raise ValueError(
            f"lambda_max: expected a non-zero `start` of shape (d,), got shape "
            f"{tuple(start.shape)} and norm {float(norm)}. Draw a random vector."
        )
    krylov = lanczos(hvp, start, max_hvps=max_hvps, tol=tol)
    return LambdaMax(krylov.value, krylov.upper - krylov.value, krylov.num_hvps)


def lanczos(
    hvp: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    max_hvps: int,
    tol: float,
    failure: float = FAILURE,
    num_kept: int = 0,
    positive_end: bool = False,
) -> Lanczos:
    """Run the iteration of :func:`lambda_max`, whose arguments are explained there.

    ``failure`` is the probability with which ``upper`` may be too low. ``positive_end`` asks for
    the largest eigenvalue instead of the largest magnitude of one. The first ``num_kept``
    vectors of the basis are kept, from which approximate eigenvectors can be made: float32 ones in
    bfloat16, whose rounding turns an eigenvector by 2e-3 and does not touch the two bounds.

    Memory: two vectors of shape (d,) during a product, four between products, and for each vector
    that is kept one of half the bytes. Of those during a product only one, which it multiplies, is
    not :func:`~lightning_linf.functional.offload.set_aside`.
    """
    mass, upper = least_mass(num_entries(start), failure), float("inf")
    dtype = start.dtype
    narrow = basis_dtype(dtype)
    slack = math.sqrt(torch.finfo(dtype).eps)  # of values that are the same but for rounding
    current = start / _norm(start)
    del start  # a caller that made it for us does not hold it either
    previous: Tensor | None = None
    beta = 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    basis: list[Tensor] = []
    while True:
        if len(basis) < num_kept:
            basis.append(set_aside(current.to(narrow)))
        image = hvp(current)
        alpha = float(dot(current, image))
        diagonal.append(alpha)
        image = torch.add(image, current, alpha=-alpha)  # not in place: it may be hvp's own
        if previous is not None:
            image.add_(bring_back(previous, image.device), alpha=-beta)
        beta = _norm(image)
        is_finite = abs(alpha) < float("inf") and beta < float("inf")
        require_finite(is_finite, "lambda_max", "finite products", f" at product {len(diagonal)}")
        values, vectors = _eigenpairs(diagonal, off_diagonal)
        off_diagonal.append(beta)
        largest = float(values.abs().max())
        value = float(values[-1]) if positive_end else largest
        is_whole = beta <= torch.finfo(dtype).eps * largest  # the basis is an invariant space
        # The bounds of all steps hold together, if the start has the least mass: so the least
        # does. A later one can be larger, when rounding is about to repeat an eigenvalue.
        ends = [_upper_end(values, vectors, diagonal, off_diagonal, mass, is_whole)]
        if not positive_end:
            mirrored = [-alpha for alpha in diagonal]
            flipped = (-values.flip(0), vectors.flip(1))
            ends.append(_upper_end(*flipped, mirrored, off_diagonal, mass, is_whole))
        if value - upper > slack * largest:
            upper = float("inf")  # it has failed: the start has less than the least mass
        upper = min(upper, max(ends))
        if is_whole or len(diagonal) == max_hvps or upper <= (1 + tol) * value:
            break
        previous, current = set_aside(current), image.div_(beta)
    kept = _eigenpairs(diagonal[: len(basis)], off_diagonal[: max(len(basis) - 1, 0)])
    return Lanczos(value, max(upper, value), len(diagonal), *kept, basis, current.new_empty(0))


def basis_dtype(dtype: torch.dtype) -> torch.dtype:
    """Tell in which dtype the basis of vectors of another one is kept."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def _upper_end(
    values: Tensor,
    vectors: Tensor,
    diagonal: list[float],
    off_diagonal: list[float],
    mass: float,
    is_whole: bool,
) -> float:
    """Bound the largest eigenvalue."""
    end = float(values[-1])
    residual = off_diagonal[-1] * float(vectors[-1, -1].abs())
    if is_whole:
        return end + residual
    return max(end + residual, spectrum_end(diagonal, off_diagonal, end, mass))


def _norm(vector: Tensor) -> float:
    """Compute the 2-norm in a dtype in which squares do not underflow."""
    return float(sum_in_pieces(torch.square, vector).sqrt())


def _eigenpairs(diagonal: list[float], off_diagonal: list[float]) -> tuple[Tensor, Tensor]:
    """Diagonalize the symmetric tridiagonal matrix; eigenvalues in ascending order."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        side = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors
