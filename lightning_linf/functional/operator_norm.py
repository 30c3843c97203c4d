"""Two bounds of the operator norm of a symmetric matrix, from a partition's norm to its dual."""

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks, dual_block_norm, dual_direction, require_vector
from lightning_linf.functional.certificate import (
    block_masses,
    certify,
    eigenvector_weights,
    first_shares,
    floored,
    random_combination,
    stationary_shares,
    to_scale,
    to_shares,
)
from lightning_linf.functional.finite import require_finite
from lightning_linf.functional.lambda_max import NUM_KEPT, lanczos
from lightning_linf.functional.offload import bring_back, set_aside
from lightning_linf.functional.random import derive_seed, normal
from lightning_linf.functional.spectrum_end import FAILURE

FIRST_HVPS = 10  # most products of the first certificate, whose shares are poor
CERTIFICATE_HVPS = 16  # of later ones: by then the spectrum's end has settled for trained networks
LAST_HVPS = 18  # of the last one: with good shares many eigenvalues are close to the largest
LEAST_CERTIFICATE = 8  # products without which a certificate would say next to nothing
LEAST_BUDGET = LEAST_CERTIFICATE + 2  # one certificate and two steps of an ascent
UNMIXED_ROUND = 3  # the certificate that takes stationary shares: risky, so not an early one
ASCENT_HVPS = 8  # most products of the first ascent, by when most of its increase is done
LATER_ASCENT_HVPS = 6  # of those that start at eigenvectors
LAST_ASCENT_HVPS = 3  # what the last certificate leaves for an ascent from its eigenvectors
ASCENT_TOL = 1e-3  # relative increase at which an ascent stops
STEP = 0.3  # by how much shares move towards the masses; it and SHARPNESS were the best of several


class OperatorNorm(NamedTuple):
    """Both ends of the operator norm N of a matrix, and how far either has settled."""

    lower: float
    upper: float
    lower_increase: float  # relative increase of the lower end in its last iteration
    upper_residual: float  # by how much the upper end exceeds the eigenvalue behind it, relative
    direction: Tensor  # (d,): of norm at most 1, where H reaches the lower end, or nearly so
    shares: Tensor  # (B,): the weights of the blocks behind the upper end, s_b d_b, of sum 1
    num_hvps: int


class _Ascent(NamedTuple):
    value: float
    increase: float
    direction: Tensor  # (d,)
    num_hvps: int


def operator_norm(
    hvp: Callable[[Tensor], Tensor],
    start: Tensor,
    blocks: Blocks,
    *,
    shares: Tensor | None = None,
    max_hvps: int = 40,
    tol: float = 1e-2,
    seed: int = 0,
) -> OperatorNorm:
    r"""Bracket :math:`N(\Phi) = \max \|Hv\|_\Phi^*` over :math:`\|v\|_\Phi \le 1`, H symmetric.

    *Lower end.* An ascent repeats ``v <- dual_direction(H v)``. The dual norm of ``H v`` then never
    falls, whatever the signs of the eigenvalues, because H is symmetric.

    *Upper end.* For any positive weights ``s`` of the blocks, N is at most the largest absolute
    eigenvalue of ``S^(-1/2) H S^(-1/2)`` times ``sum_b s_b d_b``, with S the diagonal matrix of the
    weight of each coordinate's block. Each choice of weights gives such a certificate, and the
    smallest counts. The first choice is midway between ``norm2((Hv)_b) / sqrt(d_b)``, from where
    the ascent stopped, and ``shares``. The former would be exact if there were no gap between the
    ends. Then the weights move towards the blocks in which the eigenvectors of the largest
    eigenvalues have their mass; and these eigenvectors are new starts for the ascent. The best
    upper end of this kind is the dual of the semidefinite relaxation of N: at most 1.783 N
    (Grothendieck's constant), and 1.571 N if all eigenvalues of H have one sign.

    With one block both ends are d times bounds of the largest absolute eigenvalue.

    Args:
        hvp: The product with H, from (d,) to (d,).
        start: Where the ascent starts, shape (d,), not zero: a random vector, say. Certificates,
            and with one block everything, start at random vectors of their own.
        blocks: A partition of the d coordinates.
        shares: How much the rows of each block add to the norm, estimated, in any unit. Shape (B,).
            The better the estimates are, the lower is the first certificate. None: the blocks'
            sizes.
        max_hvps: Budget of products, at least ``LEAST_BUDGET``.
        tol: Relative distance of the two ends at which to stop.
        seed: Seed of the random vectors.

    Returns:
        Both ends, in the units of H (not divided by d). The lower end has no error but rounding.
        The upper end is too low with a probability of at most ``FAILURE`` = 0.25 % over seeds,
        whatever H is: each certificate is a Lanczos iteration from a random start, which bounds the
        largest eigenvalue that it may have missed (:func:`~lightning_linf.functional.lambda_max`).
        The probabilities of all certificates add up to that.

    Raises:
        ValueError: If a shape is wrong, ``start`` is zero, a product is not finite, or the budget
            is less than ``LEAST_BUDGET``.

    Source:
        Quantity: Xie, Mohamadi & Li, arXiv:2410.08198. Lower end: the power method for norms of
        Boyd (1974). Upper end: weak duality for the relaxation of Nesterov (1998). Memory
        during a product: five vectors of shape (d,), ``NUM_KEPT`` of half the bytes, and with more
        than one certificate two more. Of these, the search for the upper end needs two and those
        of half the bytes only later: :func:`~lightning_linf.functional.offload.set_aside`.

    Example:
        >>> from lightning_linf.functional import LabelledBlocks
        >>> coordinates = LabelledBlocks(torch.arange(2))
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> result = operator_norm(lambda v: H @ v, torch.ones(2), coordinates)
        >>> round(result.lower, 3), result.upper < 4.05  # the maximum is at v = (1, -1)
        (4.0, True)
    """
    require_vector("operator_norm", "start", start, blocks)
    if not start.any():
        raise ValueError("operator_norm: expected a non-zero `start`. Draw a random vector.")
    if max_hvps < LEAST_BUDGET:
        raise ValueError(
            f"operator_norm: expected `max_hvps` >= {LEAST_BUDGET}, got {max_hvps}. With fewer "
            "products the upper end would not hold."
        )
    if blocks.num_blocks == 1:
        return _of_one_block(hvp, start, max_hvps, tol, seed)
    # A small budget is kept for the certificate, without which there is no upper end.
    ascent_budget = min(ASCENT_HVPS, max_hvps - LEAST_CERTIFICATE)
    best, product = _ascend(hvp, dual_direction(start, blocks), blocks, ascent_budget)
    moving = to_scale(first_shares(product, shares, blocks), blocks)
    del product, start, shares  # which a caller that made them for us does not hold either
    left, unused, certified = max_hvps - best.num_hvps, FAILURE, moving
    upper, residual = float("inf"), 0.0
    for position in count():
        scale = moving
        if position == UNMIXED_ROUND:
            # Where the two ends can meet, stationary shares alone are the best.
            stationary = stationary_shares(hvp(bring_back(best.direction, moving.device)), blocks)
            scale, left = to_scale(floored(stationary, blocks), blocks), left - 1
        is_last = left < FIRST_HVPS + LATER_ASCENT_HVPS + CERTIFICATE_HVPS
        if is_last:
            budget = min(LAST_HVPS, max(LEAST_CERTIFICATE, left - LAST_ASCENT_HVPS))
        else:
            budget = CERTIFICATE_HVPS if position else FIRST_HVPS
        # In proportion to the products: those of all certificates add up to FAILURE.
        failure = unused if is_last else unused * budget / left
        seed_here = derive_seed("operator_norm", seed, max_hvps - left)
        krylov = certify(
            hvp, blocks.expand(scale), max_hvps=budget, failure=failure, seed=seed_here
        )
        left, unused = left - krylov.num_hvps, unused - failure
        if krylov.upper < upper:
            upper, certified = krylov.upper, set_aside(scale)
            residual = (krylov.upper - krylov.value) / krylov.value if krylov.value else 0.0
        if not left or upper <= best.value * (1 + tol):
            break
        weights = eigenvector_weights(krylov)
        candidate = random_combination(krylov, weights.sqrt(), seed_here).div_(blocks.expand(scale))
        direction = dual_direction(candidate, blocks)
        del candidate
        ascent, _ = _ascend(hvp, direction, blocks, min(LATER_ASCENT_HVPS, left))
        left -= ascent.num_hvps
        if ascent.value > best.value:
            gain = (ascent.value - best.value) / ascent.value
            best = ascent._replace(increase=min(gain, ascent.increase))
        if is_last:
            break
        if position != UNMIXED_ROUND:
            mass = block_masses(krylov, weights, blocks)
            mixed = torch.lerp(to_shares(moving, blocks), mass, STEP)
            moving = to_scale(floored(mixed, blocks), blocks)
            del mass, mixed
        del krylov, ascent, direction
    return OperatorNorm(
        lower=best.value,
        upper=max(upper, best.value),  # where they meet, rounding may put it below
        lower_increase=best.increase,
        upper_residual=residual,
        direction=bring_back(best.direction, moving.device),
        shares=to_shares(bring_back(certified, moving.device), blocks),
        num_hvps=max_hvps - left,
    )


def _of_one_block(
    hvp: Callable[[Tensor], Tensor], like: Tensor, max_hvps: int, tol: float, seed: int
) -> OperatorNorm:
    dim = len(like)
    krylov = lanczos(
        hvp,
        normal(dim, seed=derive_seed("operator_norm", seed), dtype=like.dtype, device=like.device),
        max_hvps=max_hvps,
        tol=tol,
        num_kept=NUM_KEPT,
    )
    direction = krylov.ritz_vector(krylov.extreme)
    if torch.dot(direction, like) < 0:
        direction.neg_()
    relative = (krylov.upper - krylov.value) / krylov.value if krylov.value else 0.0
    return OperatorNorm(
        lower=dim * krylov.value,
        upper=dim * krylov.upper,
        lower_increase=relative,
        upper_residual=relative,
        direction=direction.mul_(dim**0.5 / torch.linalg.vector_norm(direction)),
        shares=like.new_ones(1),
        num_hvps=krylov.num_hvps,
    )


def _ascend(
    hvp: Callable[[Tensor], Tensor], direction: Tensor, blocks: Blocks, max_hvps: int
) -> tuple[_Ascent, Tensor]:
    """Repeat the step of the lower end; gives its end, and H times the direction there (d,)."""
    value, num_hvps = 0.0, 0
    while True:
        product, num_hvps = hvp(direction), num_hvps + 1
        previous, value = value, float(dual_block_norm(product, blocks))
        require_finite(value < float("inf"), "operator_norm", "finite products")
        increase = (value - previous) / value if value else 0.0
        if increase <= ASCENT_TOL or num_hvps == max_hvps:
            return _Ascent(value, max(increase, 0.0), set_aside(direction), num_hvps), product
        direction = dual_direction(product, blocks)
        del product  # not held during the next
