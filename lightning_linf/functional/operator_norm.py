"""Operator norm of a symmetric matrix from the norm of a partition to its dual, from both sides."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.blocks import (
    Blocks,
    dual_block_norm,
    dual_direction,
    wide_dtype,
)
from lightning_linf.functional.lambda_max import LEAST_HVPS, Lanczos, lanczos
from lightning_linf.functional.random import derive_seed, normal
from lightning_linf.functional.spectrum_end import FAILURE

FIRST_HVPS = 10  # of the first certificate, whose shares are poor
CERTIFICATE_HVPS = 14  # products after which the end of a trained network's spectrum has settled
LAST_HVPS = 20  # most products of the last certificate: in a good scaling eigenvalues are close
CERTIFICATE_TOL = 1e-2  # of its end over its eigenvalue, at which a certificate stops
LEAST_BUDGET = LEAST_HVPS + 2  # a certificate and an ascent
UNMIXED_ROUND = 3  # the certificate that tries stationary shares: not an early one, as it is risky
ASCENT_HVPS = 8  # most products of the first ascent, by when most of its increase is done
LATER_ASCENT_HVPS = 6  # of those that start at eigenvectors
ASCENT_TOL = 1e-3  # relative increase at which an ascent stops
LEAST_SHARE = 1e-3  # of a coordinate in a scaling, over the mean: its inverse root must exist
STEP = (
    0.3  # of a scaling towards the eigenvectors' mass; 0.3 and SHARPNESS were the best of several
)
SHARPNESS = 12.0  # how much more an eigenvector counts than one of half its eigenvalue


class OperatorNorm(NamedTuple):
    """Both ends of the operator norm N of a matrix, and how far either has settled."""

    lower: float
    upper: float
    lower_increase: float  # of the lower end in its last iteration, relative
    upper_residual: float  # of the upper end over the eigenvalue found behind it, relative
    direction: Tensor  # (d,): of norm at most 1, and reaches the lower end
    shares: Tensor  # (B,): of the blocks in the scaling behind the upper end; they sum to 1
    num_hvps: int


class _Ascent(NamedTuple):
    value: float
    increase: float
    direction: Tensor  # (d,)
    product: Tensor  # (d,), of the direction
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

    *Lower end.* ``v <- dual_direction(H v)`` never lets the dual norm of ``H v`` fall, whatever the
    signs of the eigenvalues, because H is symmetric.

    *Upper end.* For any positive weights ``s`` of the blocks, ``u^T H v`` is at most the largest
    absolute eigenvalue of ``S^(-1/2) H S^(-1/2)`` times ``sum_b s_b d_b``. The weights start midway
    between those at which the lower end is stationary, ``norm2((Hv)_b) / sqrt(d_b)``, which would
    be exact if that eigenvalue were 1, and ``shares``; then they move towards where its
    eigenvectors have their mass. Between two certificates the eigenvectors give new starts for the
    lower end. At its best the upper end is the dual of the semidefinite relaxation of N: at most
    1.783 N (Grothendieck's constant), and 1.571 N if H has one sign.

    With one block both ends are d times the largest absolute eigenvalue.

    Args:
        hvp: The matrix, from (d,) to (d,).
        start: Where the ascent starts, shape (d,), not zero: a random vector, say. Certificates,
            and with one block everything, start at random vectors of their own.
        blocks: A partition of the d coordinates.
        shares: Of the blocks in the whole, shape (B,), from estimates of their row norms: the
            better they are, the closer is the first certificate. None: the blocks' sizes.
        max_hvps: Budget of products, at least ``LEAST_BUDGET``.
        tol: Relative distance of the two ends at which to stop.
        seed: Of the random parts.

    Returns:
        Both ends, in the units of H (not divided by d). The lower end has no error but rounding.
        The upper end is too low with a probability of at most ``FAILURE`` = 0.25 % over seeds,
        whatever H is: each certificate is a Lanczos iteration from a random start, which bounds the
        largest eigenvalue that it may have missed (:func:`~lightning_linf.functional.lambda_max`),
        and what all may miss adds up to that.

    Raises:
        ValueError: If a shape is wrong, ``start`` is zero, a product is not finite, or the budget
            is less than ``LEAST_BUDGET``.

    Source:
        Quantity: Xie, Mohamadi & Li, arXiv:2410.08198. Lower end: the power method for norms of
        Boyd (1974). Upper end: weak duality for the relaxation of Nesterov (1998). Memory:
        about LAST_HVPS + 8 vectors.

    Example:
        >>> class Coordinates:
        ...     name, num_params, num_blocks = "coordinate", 2, 2
        ...     block_sum = expand = staticmethod(lambda values: values)
        ...     sizes = staticmethod(lambda like: like.new_ones(2))
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> result = operator_norm(lambda v: H @ v, torch.ones(2), Coordinates())
        >>> round(result.lower, 3), result.upper < 4.05  # the maximum is at v = (1, -1)
        (4.0, True)
    """
    if start.shape != (blocks.num_params,):
        raise ValueError(
            f"operator_norm: expected `start` of shape ({blocks.num_params},), "
            f"got {tuple(start.shape)}."
        )
    if not start.any():
        raise ValueError("operator_norm: expected a non-zero `start`. Draw a random vector.")
    if max_hvps < LEAST_BUDGET:
        raise ValueError(
            f"operator_norm: expected `max_hvps` >= {LEAST_BUDGET}, got {max_hvps}. With fewer "
            "products the upper end would not hold."
        )
    if blocks.num_blocks == 1:
        return _of_one_block(hvp, start, max_hvps, tol, seed)
    # Of a small budget the certificate comes first: without one there is no upper end.
    ascent_budget = min(ASCENT_HVPS, max_hvps - LEAST_HVPS)
    best = _ascend(hvp, dual_direction(start, blocks), blocks, ascent_budget)
    spent, rounds = best.num_hvps, 0
    failure = FAILURE / (max_hvps // LEAST_HVPS)  # of each certificate: there are no more of them
    moving = _first_shares(best.product, shares, blocks)
    upper, residual, certified = float("inf"), 0.0, moving
    while max_hvps - spent >= LEAST_HVPS and upper > best.value * (1 + tol):
        # Where the relaxation is tight, the shares at the stationary point are best unmixed.
        is_unmixed = rounds == UNMIXED_ROUND
        present = (
            _floored(_stationary_shares(best.product, blocks), blocks) if is_unmixed else moving
        )
        left = max_hvps - spent
        if left < FIRST_HVPS + LATER_ASCENT_HVPS + CERTIFICATE_HVPS:
            budget = min(LAST_HVPS, left)
        else:
            budget = CERTIFICATE_HVPS if rounds else FIRST_HVPS
        round_seed = derive_seed("operator_norm", seed, spent)
        scale = blocks.expand((blocks.sizes(present) / present).sqrt()).to(start)  # S^(-1/2), (d,)
        krylov = _certify(hvp, scale, budget, failure, round_seed)
        spent, rounds = spent + krylov.num_hvps, rounds + 1
        if krylov.upper < upper:
            upper, certified = krylov.upper, present
            residual = (krylov.upper - krylov.value) / krylov.value if krylov.value else 0.0
        weights = _ritz_weights(krylov)
        if spent < max_hvps:
            candidate = _mix(krylov, weights.sqrt(), round_seed)  # near an eigenvector
            left = max_hvps - spent  # and another certificate needs LEAST_HVPS of it
            ascent_budget = min(LATER_ASCENT_HVPS, left - LEAST_HVPS if left > LEAST_HVPS else left)
            ascent = _ascend(hvp, dual_direction(candidate / scale, blocks), blocks, ascent_budget)
            spent += ascent.num_hvps
            if ascent.value > best.value:
                gain = (ascent.value - best.value) / ascent.value
                best = ascent._replace(increase=min(gain, ascent.increase))
        if not is_unmixed:
            mass = _block_masses(krylov, weights, blocks)
            moving = _floored((1 - STEP) * moving + STEP * mass, blocks)
    return OperatorNorm(
        lower=best.value,
        upper=max(upper, best.value),  # they may meet, and then rounding decides
        lower_increase=best.increase,
        upper_residual=residual,
        direction=best.direction,
        shares=certified,
        num_hvps=spent,
    )


def _of_one_block(
    hvp: Callable[[Tensor], Tensor], like: Tensor, max_hvps: int, tol: float, seed: int
) -> OperatorNorm:
    dim = len(like)
    random_seed = derive_seed("operator_norm", seed)
    start = normal(dim, seed=random_seed, dtype=like.dtype, device=like.device)
    krylov = lanczos(hvp, start, max_hvps=max_hvps, tol=tol, keep_basis=True)
    direction = krylov.ritz_vector(krylov.extreme)
    direction = direction if torch.dot(direction, like) >= 0 else -direction
    relative = (krylov.upper - krylov.value) / krylov.value if krylov.value else 0.0
    return OperatorNorm(
        lower=dim * krylov.value,
        upper=dim * krylov.upper,
        lower_increase=relative,
        upper_residual=relative,
        direction=direction * (dim**0.5 / torch.linalg.vector_norm(direction)),
        shares=start.new_ones(1),
        num_hvps=krylov.num_hvps,
    )


def _ascend(
    hvp: Callable[[Tensor], Tensor], direction: Tensor, blocks: Blocks, max_hvps: int
) -> _Ascent:
    value, increase = 0.0, float("inf")
    for num_hvps in range(1, max_hvps + 1):
        product = hvp(direction)
        previous, value = value, float(dual_block_norm(product, blocks))
        if not value < float("inf"):
            raise ValueError(
                "operator_norm: expected finite products, got inf or NaN. "
                "Look at the loss and the parameters at this point."
            )
        increase = (value - previous) / value if value else 0.0
        if increase <= ASCENT_TOL or num_hvps == max_hvps:
            break
        direction = dual_direction(product, blocks)
    return _Ascent(value, max(increase, 0.0), direction, product, num_hvps)


def _first_shares(product: Tensor, shares: Tensor | None, blocks: Blocks) -> Tensor:
    """Midway between the shares at which the ascent is stationary and those given."""
    sizes = blocks.sizes(product.to(wide_dtype(product)))
    given = sizes if shares is None else shares.to(sizes)
    if given.shape != sizes.shape or not (given >= 0).all():
        raise ValueError(
            f"operator_norm: expected `shares` of shape ({blocks.num_blocks},) and at least 0, "
            f"got shape {tuple(given.shape)} and smallest {float(given.min())}."
        )
    stationary = _stationary_shares(product, blocks)
    parts = [part / part.sum() for part in (stationary, given) if part.sum() > 0]
    return _floored(sum(parts, torch.zeros_like(sizes)), blocks)


def _stationary_shares(product: Tensor, blocks: Blocks) -> Tensor:
    """Shares, but for a factor, at which an ascent with this product would be stationary. (B,)."""
    wide = product.to(wide_dtype(product))
    largest = wide.abs().amax().clamp(min=torch.finfo(wide.dtype).tiny)
    norms = blocks.block_sum((wide / largest).square()).sqrt()
    return blocks.sizes(norms).sqrt() * norms


def _floored(shares: Tensor, blocks: Blocks) -> Tensor:
    sizes = blocks.sizes(shares)
    total = shares.sum()
    if not total > 0:  # H is zero as far as we saw
        return sizes / sizes.sum()
    floored = torch.maximum(shares / total, LEAST_SHARE * sizes / sizes.sum())
    return floored / floored.sum()


def _certify(
    hvp: Callable[[Tensor], Tensor], scale: Tensor, max_hvps: int, failure: float, seed: int
) -> Lanczos:
    """Find the largest |eigenvalue| of S^(-1/2) H S^(-1/2), where ``sum_b s_b d_b`` is 1."""
    return lanczos(
        lambda v: scale * hvp(scale * v),
        normal(len(scale), seed=seed, dtype=scale.dtype, device=scale.device),
        max_hvps=max_hvps,
        tol=CERTIFICATE_TOL,
        failure=failure,
        keep_basis=True,
    )


def _ritz_weights(krylov: Lanczos) -> Tensor:
    """How much each approximate eigenvector counts, by its absolute eigenvalue. Shape: (k,)."""
    sizes = krylov.values.abs()
    return torch.softmax(SHARPNESS * (sizes / sizes.max().clamp(min=1e-300) - 1), dim=0)


def _mix(krylov: Lanczos, weights: Tensor, seed: int) -> Tensor:
    signs = normal(len(weights), seed=seed, dtype=weights.dtype)
    return krylov.combine(krylov.vectors @ (weights * signs))


def _block_masses(krylov: Lanczos, weights: Tensor, blocks: Blocks) -> Tensor:
    """Squared norm of each block (B,), averaged over the unit eigenvectors."""
    total: Tensor | None = None
    for index, weight in enumerate(weights.tolist()):
        if weight < LEAST_SHARE:
            continue
        vector = krylov.ritz_vector(index)
        mass = blocks.block_sum(vector.to(wide_dtype(vector)).square())
        mass = weight * mass / mass.sum()
        total = mass if total is None else total + mass
    assert total is not None  # the largest weight is at least 1 / k
    return total
