"""How far beyond a random start's Krylov space the spectrum of a symmetric operator may reach."""

import math
from collections.abc import Sequence

FAILURE = 0.0025  # probability with which a stated end of a spectrum does not hold
_NUM_BISECTIONS = 12  # of a distance that is known to a factor of 2 or so: to 1e-3 of itself


def least_mass(dim: int, failure: float = FAILURE) -> float:
    r"""Bound from below the part of a random unit vector that lies along any one direction.

    For u uniform on the sphere and any fixed unit vector v, :math:`\langle u, v \rangle^2` is below
    the bound with a probability of at most ``failure``: the density of :math:`\langle u, v \rangle`
    is nowhere above :math:`\sqrt{(d - 1) / 2 \pi}` (Wendel's inequality), for d = 2 within the
    bound.
    """
    return math.pi * failure**2 / (2 * max(dim - 1, 1))


def spectrum_end(
    diagonal: Sequence[float], off_diagonal: Sequence[float], end: float, mass: float
) -> float:
    r"""Bound the eigenvalues that a Lanczos iteration may not have seen, at the upper end.

    The polynomials :math:`p_0, \dots, p_k` of the iteration are orthonormal in the spectral
    measure of its start. By Bessel's inequality an eigenvalue x in whose eigenvectors the start has
    the mass w obeys :math:`w \sum_j p_j(x)^2 \le 1`, and beyond all zeros of :math:`p_k` that sum
    grows. No other bound that knows only the k products and the mass can be lower.

    Args:
        diagonal: Of the tridiagonal matrix of k products.
        off_diagonal: Its k - 1 entries beside the diagonal, and the norm of what is left.
        end: Largest eigenvalue of that matrix.
        mass: Least mass of the start in the eigenvectors of the operator's largest eigenvalue.

    Returns:
        What the operator's largest eigenvalue is not above, at least ``end``.

    Source:
        The sum is one over the Christoffel function; Szegő, Orthogonal Polynomials (1975), 3.4.
    """
    limit = 1 / mass

    def is_beyond(distance: float) -> bool:
        return _is_sum_of_squares_above(limit, end + distance, diagonal, off_diagonal)

    if is_beyond(0.0):
        return end
    # The last polynomial alone reaches the limit by then, up to rounding.
    upper = max(off_diagonal) * math.pow(limit, 0.5 / len(diagonal))
    while not is_beyond(upper):
        upper *= 2
    while is_beyond(upper / 2):
        upper /= 2
        if end + upper == end:
            return end
    lower = upper / 2
    for _ in range(_NUM_BISECTIONS):
        middle = (lower + upper) / 2
        lower, upper = (lower, middle) if is_beyond(middle) else (middle, upper)
    return end + upper


def _is_sum_of_squares_above(
    limit: float, x: float, diagonal: Sequence[float], off_diagonal: Sequence[float]
) -> bool:
    """Whether the squares of the orthonormal polynomials at x add up to more than the limit."""
    previous, current, before, total = 0.0, 1.0, 0.0, 1.0
    for alpha, beta in zip(diagonal, off_diagonal, strict=True):
        previous, current = current, ((x - alpha) * current - before * previous) / beta
        before = beta
        total += current * current
        if total > limit:
            return True
    return False
