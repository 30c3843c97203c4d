"""Largest absolute eigenvalue of a symmetric operator, by Lanczos, with its residual."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LambdaMax(NamedTuple):
    """The eigenvalue of largest magnitude, and how well it is known."""

    value: float  # |lambda|, in the units of the operator
    residual: float  # an exact eigenvalue lies within this distance of +-value
    num_hvps: int


def lambda_max(
    hvp: Callable[[Tensor], Tensor], start: Tensor, *, max_hvps: int = 64, tol: float = 1e-2
) -> LambdaMax:
    r"""Compute :math:`\max_i |\lambda_i|` of a symmetric operator by Lanczos iteration.

    Stops when the residual falls to ``tol`` times the value, or after ``max_hvps`` products. The
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
    current, previous, beta = start / norm, torch.zeros_like(start), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        image = hvp(current)
        alpha = float(torch.dot(current, image))
        diagonal.append(alpha)
        image = image - alpha * current - beta * previous
        beta = float(torch.linalg.vector_norm(image))
        if not (abs(alpha) < float("inf") and beta < float("inf")):
            raise ValueError(
                f"lambda_max: expected finite products, got inf or NaN at product {len(diagonal)}. "
                "Look at the loss and the parameters at this point."
            )
        value, last = _extreme_ritz_pair(diagonal, off_diagonal)
        residual = beta * last
        if residual <= tol * value or len(diagonal) == max_hvps:
            return LambdaMax(value, residual, len(diagonal))
        off_diagonal.append(beta)
        previous, current = current, image / beta


def _extreme_ritz_pair(diagonal: list[float], off_diagonal: list[float]) -> tuple[float, float]:
    """Largest |eigenvalue| of the tridiagonal matrix, and |last entry| of its eigenvector."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        side = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
    values, vectors = torch.linalg.eigh(matrix)
    extreme = int(values.abs().argmax())
    return float(values[extreme].abs()), float(vectors[-1, extreme].abs())
