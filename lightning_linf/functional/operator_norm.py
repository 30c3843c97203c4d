"""Two bounds of the operator norm of a symmetric matrix, from a partition's norm to its dual."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lightning_linf.functional.blocks import Blocks, dual_direction, require_vector
from lightning_linf.functional.certificate import given_shares, to_shares
from lightning_linf.functional.lambda_max import NUM_KEPT, lanczos
from lightning_linf.functional.norm_search import LEAST_BUDGET, Search
from lightning_linf.functional.offload import bring_back
from lightning_linf.functional.random import derive_seed
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.functional.vector_shards import any_nonzero, dot, num_entries, two_norm


class OperatorNorm(NamedTuple):
    """Both ends of the operator norm N of a matrix, and how far either has settled."""

    lower: float
    upper: float  # of the adaptive smoothness Lambda, too
    adaptive_lower: float  # lower end of Lambda, at least that of N
    lower_increase: float  # relative increase of the lower end in its last iteration
    upper_residual: float  # by how much the upper end exceeds the eigenvalue behind it, relative
    direction: Tensor  # (d,): of norm at most 1, where H reaches the lower end, or nearly so
    shares: Tensor  # (B,): the weights of the blocks behind the upper end, s_b d_b, of sum 1
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

    Beside it, bracket the adaptive smoothness :math:`\Lambda(\Phi) \ge N(\Phi)`.

    *Lower ends.* That of Lambda is the ascent over ``RANK`` columns of
    :func:`~lightning_linf.functional.adaptive_smoothness.adaptive_ascent`. From the combination of
    its columns that adds most to the value, and again from the eigenvector below, the same ascent
    over one column gives that of N: ``v <- dual_direction(H v)``, whereby the dual norm of ``H v``
    never falls. A budget too small for both leaves the latter, from ``start``.

    *Upper end.* For any positive weights ``s`` of the blocks, N and Lambda are at most the largest
    absolute eigenvalue of ``S^(-1/2) H S^(-1/2)`` times ``sum_b s_b d_b``, with S the diagonal
    matrix of the weight of each coordinate's block: S times that eigenvalue is at least H and -H.
    Each choice of weights gives such a certificate, and the smallest counts. The choice is
    ``||(H V)_b|| / sqrt(d_b)`` for the columns V where the ascent has stopped, which would be exact
    had it reached Lambda, mixed with ``shares``. A larger budget repeats all three from where they
    were. The least of all such upper ends is Lambda, the dual of the semidefinite relaxation of N:
    at most 1.783 N (Grothendieck's constant), and 1.571 N if all eigenvalues of H have one sign.

    With one block Lambda is N, and the ends are d times bounds of the largest absolute eigenvalue.

    Args:
        hvp: The product with H, from (d,) to (d,).
        start: Where the ascents start, shape (d,), not zero: a random vector, say. Certificates,
            and with one block everything, start at random vectors of their own.
        blocks: A partition of the d coordinates.
        shares: How much the rows of each block add to the norm, estimated, in any unit. Shape (B,).
            The better the estimates are, the lower is the first certificate. None: the blocks'
            sizes.
        max_hvps: Budget of products, at least ``LEAST_BUDGET``. It is spent in rounds of
            ``ROUND_HVPS``, and each round more leaves the bracket as it is or narrows it.
        tol: Relative distance of two ends at which to stop.
        seed: Seed of the random vectors.

    Returns:
        The ends, in the units of H (not divided by d). The lower ends have no error but rounding.
        The upper end is too low with a probability of at most ``FAILURE`` = 0.25 % over seeds,
        whatever H is: each certificate is a Lanczos iteration from a random start, which bounds the
        largest eigenvalue that it may have missed (:func:`~lightning_linf.functional.lambda_max`).
        The probabilities of all certificates add up to that.

    Raises:
        ValueError: If a shape is wrong, ``start`` is zero, a product is not finite, or the budget
            is less than ``LEAST_BUDGET``.

    Source:
        Quantities: Xie, Mohamadi & Li, arXiv:2410.08198, and for Lambda Xie, Wang, Wu & Li,
        arXiv:2511.20584. Lower end of N: the power method for norms of Boyd (1974). Upper end: weak
        duality for the relaxation of Nesterov (1998). Memory during a product: eight vectors of
        shape (d,) at most, ``NUM_KEPT`` of half the bytes, and if the budget allows another round
        ``RANK`` + 1 more. Of these, two, those of half the bytes and the last ones are only needed
        later: :func:`~lightning_linf.functional.offload.set_aside`.

    Example:
        >>> import torch
        >>> from lightning_linf.functional import LabelledBlocks
        >>> coordinates = LabelledBlocks(torch.arange(2))
        >>> H = torch.tensor([[2.0, -1.0], [-1.0, 0.0]])
        >>> result = operator_norm(lambda v: H @ v, torch.ones(2), coordinates)
        >>> round(result.lower, 3), result.upper < 4.05  # the maximum is at v = (1, -1)
        (4.0, True)
    """
    require_vector("operator_norm", "start", start, blocks)
    if not any_nonzero(start):
        raise ValueError("operator_norm: expected a non-zero `start`. Draw a random vector.")
    if max_hvps < LEAST_BUDGET:
        raise ValueError(
            f"operator_norm: expected `max_hvps` >= {LEAST_BUDGET}, got {max_hvps}. With fewer "
            "products the upper end would not hold."
        )
    if blocks.num_blocks == 1:
        return _of_one_block(hvp, start, max_hvps, tol, seed)
    search = Search(hvp, start, blocks, given_shares(shares, blocks, start), max_hvps, seed)
    del start, shares  # which a caller that made them for us does not hold either
    while search.left >= LEAST_BUDGET and search.upper > search.best.value * (1 + tol):
        # Once both ends of Lambda have met, only the lower end of N can be bettered.
        search.round(is_open=search.upper > search.adaptive * (1 + tol))
    best, adaptive, direction = search.best, search.adaptive, search.best_direction()
    return OperatorNorm(
        lower=best.value,
        upper=max(search.upper, adaptive),  # where they meet, rounding may put it below
        adaptive_lower=adaptive,
        lower_increase=best.increase,
        upper_residual=search.residual,
        # Where H is zero no ascent has moved from ``start``, whose norm may be any.
        direction=direction if best.value > 0 else dual_direction(direction, blocks),
        shares=to_shares(bring_back(search.scale, search.like.device), blocks),
        num_hvps=max_hvps - search.left,
    )


def _of_one_block(
    hvp: Callable[[Tensor], Tensor], like: Tensor, max_hvps: int, tol: float, seed: int
) -> OperatorNorm:
    dim = num_entries(like)
    krylov = lanczos(
        hvp,
        normal_vector(dim, seed=derive_seed("operator_norm", seed), like=like),
        max_hvps=max_hvps,
        tol=tol,
        num_kept=NUM_KEPT,
    )
    direction = krylov.ritz_vector(krylov.extreme)
    if dot(direction, like) < 0:
        direction.neg_()
    relative = (krylov.upper - krylov.value) / krylov.value if krylov.value else 0.0
    return OperatorNorm(
        lower=dim * krylov.value,
        upper=dim * krylov.upper,
        adaptive_lower=dim * krylov.value,
        lower_increase=relative,
        upper_residual=relative,
        direction=direction.mul_(dim**0.5 / two_norm(direction)),
        shares=like.new_ones(1),
        num_hvps=krylov.num_hvps,
    )
