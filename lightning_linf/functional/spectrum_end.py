"""Bound the eigenvalues that a Lanczos iteration from a random start may have missed."""

import math
from collections.abc import Sequence

FAILURE = 0.0025  # probability with which a stated bound of the eigenvalues does not hold
_NUM_BISECTIONS = 12  # from a factor of 2 between the ends to less than 1e-3 of the distance


def least_mass(dim: int, failure: float = FAILURE) -> float:
    r"""Bound from below the squared component of a random unit vector along a fixed direction.

    For u uniform on the unit sphere of d dimensions and any fixed unit vector v,
    :math:`\langle u, v \rangle^2` is below the bound with a probability of at most ``failure``:
    the density of :math:`\langle u, v \rangle` is nowhere above :math:`\sqrt{(d - 1) / 2 \pi}`
    (Wendel's inequality), but for d = 2 near 1 and -1, far from these small components.
    """
    return math.pi * failure**2 / (2 * max(dim - 1, 1))


def spectrum_end(
    diagonal: Sequence[float], off_diagonal: Sequence[float], end: float, mass: float
) -> float:
    r"""Bound the largest eigenvalue of an operator from k steps of a Lanczos iteration.

    The vectors of the iteration are :math:`p_0(H) u, \dots, p_k(H) u` for its start u and
    polynomials :math:`p_j` of degree j, which its tridiagonal matrix determines. They are
    orthonormal, so by Bessel's inequality an eigenvalue x obeys :math:`w \sum_j p_j(x)^2 \le 1`,
    where w, the mass, is the squared norm of the part of u in the eigenvectors of x. Beyond all
    zeros of :math:`p_k` that sum grows with x, so a least mass gives a largest x. No other bound
    that knows only the k products and the mass can be lower.

    Args:
        diagonal: The diagonal of the tridiagonal matrix, k numbers.
        off_diagonal: Its k - 1 entries beside the diagonal, and the norm of the last residual.
        end: Largest eigenvalue of that matrix.
        mass: Least mass of the start, as :func:`least_mass` gives it.

    Returns:
        An upper bound of the operator's largest eigenvalue, at least ``end``.

    Source:
        The sum is one over the Christoffel function; Szegő, Orthogonal Polynomials (1975), 3.4.
    """
    limit = 1 / mass

    def is_beyond(distance: float) -> bool:
        return _is_sum_of_squares_above(limit, end + distance, diagonal, off_diagonal)

    if is_beyond(0.0):
        return end
    # The last polynomial alone has reached the limit at this distance, up to rounding.
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
    """Say whether the squares of the polynomials p_0, ..., p_k at x add up to over the limit."""
    previous, current, before, total = 0.0, 1.0, 0.0, 1.0
    for alpha, beta in zip(diagonal, off_diagonal, strict=True):
        previous, current = current, ((x - alpha) * current - before * previous) / beta
        before = beta
        total += current * current
        if total > limit:
            return True
    return False
