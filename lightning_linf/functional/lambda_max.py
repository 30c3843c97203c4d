"""Largest absolute eigenvalue of a symmetric operator, by Lanczos, with its residual."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import wide_dtype

LEAST_HVPS = 8  # before which a small residual may be that of a smaller eigenvalue


class LambdaMax(NamedTuple):
    """The eigenvalue of largest magnitude, and how well it is known."""

    value: float  # |lambda|, in the units of the operator
    residual: float  # an exact eigenvalue lies within this distance of +-value
    num_hvps: int


@dataclass(frozen=True)
class Lanczos:
    """What k products with a symmetric operator tell of its eigenvalues."""

    values: Tensor  # (k,) float64: approximate (Ritz) eigenvalues
    vectors: Tensor  # (k, k) float64: their vectors, as columns, in the coordinates of the basis
    beta: float  # norm of what lies outside the basis
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
        """Distance of it within which an exact eigenvalue lies."""
        return self.beta * float(self.vectors[-1, self.extreme].abs())

    @property
    def upper(self) -> float:
        """Largest magnitude that a value may have within its residual, at either end."""
        return float((self.values.abs() + self.beta * self.vectors[-1].abs()).max())

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

    Stops when neither end of the spectrum can be larger than ``1 + tol`` times the value within its
    residual, but not before ``LEAST_HVPS`` products; or after ``max_hvps`` products. The
    value's own error is of second order in the residual: about residual squared over the gap to
    the next eigenvalue.

    Args:
        hvp: The operator, from (d,) to (d,).
        start: A random vector (normal, say), shape (d,); it must not be zero.
        max_hvps: Budget of products, at least 1.
        tol: Residual over value at which to stop.

    Returns:
        Value, residual (absolute) and the number of products spent.

    Raises:
        ValueError: If ``start`` is zero or not 1-D, a product is not finite, or the budget is < 1.

    Source:
        Lanczos iteration with the residual of Parlett, The Symmetric Eigenvalue Problem (1998),
        ch. 13. Without reorthogonalisation, in memory for three vectors: rounding then repeats
        converged eigenvalues but moves none (Paige 1980), and only the largest is asked for.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
        >>> round(lambda_max(lambda v: H @ v, torch.ones(3)).value, 3)
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
    return LambdaMax(krylov.value, krylov.residual, krylov.num_hvps)


def lanczos(
    hvp: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    max_hvps: int,
    tol: float,
    keep_basis: bool = False,
) -> Lanczos:
    """Run the iteration of :func:`lambda_max`, and keep its basis on demand."""
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
        result = Lanczos(*_eigenpairs(diagonal, off_diagonal), beta, basis)
        # Early on, a value may settle that is not the largest, or the other end not at all.
        is_settled = len(diagonal) >= LEAST_HVPS and result.upper <= (1 + tol) * result.value
        is_whole = beta <= torch.finfo(start.dtype).eps * result.value  # nothing outside the basis
        if is_settled or is_whole or len(diagonal) == max_hvps:
            return result
        off_diagonal.append(beta)
        previous, current = current, image / beta


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
