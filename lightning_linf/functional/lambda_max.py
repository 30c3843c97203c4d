"""Largest absolute eigenvalue of a symmetric operator, by Lanczos, and an end above it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import wide_dtype
from lightning_linf.functional.spectrum_end import FAILURE, least_mass, spectrum_end

LEAST_HVPS = 8  # before which a small residual may be that of a smaller eigenvalue


class LambdaMax(NamedTuple):
    """The eigenvalue of largest magnitude, and how well it is known."""

    value: float  # in the units of the operator; the largest |lambda| is not below it
    residual: float  # what it may lack: the largest is not above their sum, but for a failure
    num_hvps: int


@dataclass(frozen=True)
class Lanczos:
    """What k products with a symmetric operator tell of its eigenvalues."""

    values: Tensor  # (k,) float64: approximate (Ritz) eigenvalues
    vectors: Tensor  # (k, k) float64: their vectors, as columns, in the coordinates of the basis
    beta: float  # norm of what lies outside the basis
    upper: float  # what the largest |eigenvalue| is not above, but for a failure
    basis: Sequence[Tensor]  # k vectors (d,) if they were kept

    @property
    def num_hvps(self) -> int:
        """Number of products k."""
        return len(self.values)

    @property
    def extreme(self) -> int:
        """Index of the value of largest magnitude."""
        return int(self.values.abs().argmax())

    @property
    def value(self) -> float:
        """Largest magnitude of a value; at most that of an eigenvalue."""
        return float(self.values[self.extreme].abs())

    @property
    def residual(self) -> float:
        """Distance of it within which an eigenvalue lies, not always the largest."""
        return self.beta * float(self.vectors[-1, self.extreme].abs())

    def ritz_vector(self, index: int) -> Tensor:
        """Approximate eigenvector of ``values[index]``, shape (d,); needs the basis."""
        return self.combine(self.vectors[:, index])

    def combine(self, coefficients: Tensor) -> Tensor:
        """Sum of the basis vectors times coefficients (k,). Shape: (d,)."""
        result = torch.zeros_like(self.basis[0])
        for vector, coefficient in zip(self.basis, coefficients.tolist(), strict=True):
            result.add_(vector, alpha=coefficient)
        return result


def lambda_max(
    hvp: Callable[[Tensor], Tensor], start: Tensor, *, max_hvps: int = 64, tol: float = 1e-2
) -> LambdaMax:
    r"""Compute :math:`\max_i |\lambda_i|` of a symmetric operator by Lanczos iteration.

    Stops when the largest magnitude is known to ``tol``, but not before ``LEAST_HVPS`` products;
    or after ``max_hvps`` products. It is not below ``value``, and above ``value + residual`` with a
    probability of at most ``FAILURE`` = 0.25 % over random starts, however close to each other the
    eigenvalues are. (The residual of the eigenvalue equation alone says that *an* eigenvalue is
    near.)

    Args:
        hvp: The operator, from (d,) to (d,).
        start: A normal random vector, shape (d,); of another one the probability does not hold.
        max_hvps: Budget of products, at least 1.
        tol: Residual over value at which to stop.

    Returns:
        Value, residual (absolute) and the number of products spent.

    Raises:
        ValueError: If ``start`` is zero or not 1-D, a product is not finite, or the budget is < 1.

    Source:
        Lanczos iteration, Parlett, The Symmetric Eigenvalue Problem (1998), ch. 13. Upper end:
        :func:`~lightning_linf.functional.spectrum_end.spectrum_end`, from the products themselves
        and so below the worst case of Kuczynski & Wozniakowski, SIAM J. Matrix Anal. Appl. 13
        (1992). Without reorthogonalisation, in memory for three vectors: rounding then repeats
        converged eigenvalues but moves none (Paige 1980), and only the largest is asked for.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
        >>> round(lambda_max(lambda v: H @ v, torch.tensor([0.4, -1.1, 0.7])).value, 3)
        3.0
    """
    if max_hvps < 1:
        raise ValueError(f"lambda_max: expected `max_hvps` >= 1, got {max_hvps}.")
    norm = torch.linalg.vector_norm(start) if start.ndim == 1 else start.new_zeros(())
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
    keep_basis: bool = False,
) -> Lanczos:
    """Run the iteration of :func:`lambda_max`, and keep its basis on demand."""
    mass, upper = least_mass(len(start), failure), float("inf")
    current = start / _norm(start)
    previous, beta = torch.zeros_like(start), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    basis: list[Tensor] = []
    while True:
        if keep_basis:
            basis.append(current)
        image = hvp(current)
        alpha = float(torch.dot(current, image))
        diagonal.append(alpha)
        image = image - alpha * current - beta * previous
        beta = _norm(image)
        if not (abs(alpha) < float("inf") and beta < float("inf")):
            raise ValueError(
                f"lambda_max: expected finite products, got inf or NaN at product {len(diagonal)}. "
                "Look at the loss and the parameters at this point."
            )
        values, vectors = _eigenpairs(diagonal, off_diagonal)
        off_diagonal.append(beta)
        value = float(values.abs().max())
        is_whole = beta <= torch.finfo(start.dtype).eps * value  # nothing outside the basis
        is_last = is_whole or len(diagonal) == max_hvps
        if is_last or len(diagonal) >= LEAST_HVPS:
            # All hold at once, where the start has the least mass; so the smallest does. Later ones
            # can be larger, where rounding is about to repeat an eigenvalue.
            upper = min(upper, _upper_end(values, vectors, diagonal, off_diagonal, mass, is_whole))
        if is_last or (len(diagonal) >= LEAST_HVPS and upper <= (1 + tol) * value):
            return Lanczos(values, vectors, beta, max(upper, value), basis)
        previous, current = current, image / beta


def _upper_end(
    values: Tensor,
    vectors: Tensor,
    diagonal: list[float],
    off_diagonal: list[float],
    mass: float,
    is_whole: bool,
) -> float:
    """Largest magnitude that an eigenvalue may have, at either end of the spectrum."""
    within = values.abs() + off_diagonal[-1] * vectors[-1].abs()  # of each value, its residual
    upper = float(torch.stack([within[0], within[-1]]).max())
    if is_whole:
        return upper
    highest = spectrum_end(diagonal, off_diagonal, float(values[-1]), mass)
    mirrored = [-alpha for alpha in diagonal]
    return max(upper, highest, spectrum_end(mirrored, off_diagonal, -float(values[0]), mass))


def _norm(vector: Tensor) -> float:
    """2-norm whose squares do not underflow."""
    return float(torch.linalg.vector_norm(vector, dtype=wide_dtype(vector)))


def _eigenpairs(diagonal: list[float], off_diagonal: list[float]) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the symmetric tridiagonal matrix."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        side = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors
