"""Upper bounds of an operator norm: certificates, each for a choice of weights of the blocks.

For any positive weights s the norm is at most ``sum_b s_b d_b`` times the largest absolute
eigenvalue of ``S^(-1/2) H S^(-1/2)``, where S is the diagonal matrix of the weight of each
coordinate's block. Here weights are given as *shares* ``s_b d_b`` of sum 1. Any shares give a bound
that holds, so they may be as inexact as they are cheap: they have the dtype of the products.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks
from lightning_linf.functional.in_pieces import largest_magnitude
from lightning_linf.functional.lambda_max import NUM_KEPT, Lanczos, lanczos
from lightning_linf.functional.random import normal

CERTIFICATE_TOL = 1e-2  # relative distance of the two bounds of the eigenvalue at which to stop
LEAST_SHARE = 1e-3  # of a coordinate's share over the mean share: S^(-1/2) must not overflow


def given_shares(shares: Tensor | None, blocks: Blocks, like: Tensor) -> Tensor:
    """Check shares, of any sum; None: the sizes of the blocks. Shape: (B,)."""
    given = blocks.sizes(like) if shares is None else shares
    if given.shape != (blocks.num_blocks,) or not (given >= 0).all():
        raise ValueError(
            f"operator_norm: expected `shares` of shape ({blocks.num_blocks},) and at least 0, "
            f"got shape {tuple(given.shape)} and smallest {float(given.min())}."
        )
    return normalized(given).to(like)


def stationary_shares(products: Sequence[Tensor], blocks: Blocks) -> Tensor:
    """Compute ``sqrt(d_b) ||(H V)_b||`` of the products H V, over a common factor. Shape: (B,).

    An ascent that has stopped at the columns V is stationary for these shares; where it has reached
    the adaptive smoothness, no others are better.
    """
    largest = torch.stack([largest_magnitude(product) for product in products]).max()
    squares: Tensor | None = None
    for product in products:
        part = normalized(product, largest).square_()
        part = part if blocks.num_blocks == blocks.num_params else blocks.block_sum(part)
        squares = part if squares is None else squares.add_(part)
    assert squares is not None
    norms = squares.sqrt_()
    return norms.mul_(blocks.sizes(norms).sqrt_())


def mixed_shares(stationary: Tensor, given: Tensor, weight: float, blocks: Blocks) -> Tensor:
    """Add ``weight`` times the given shares, of sum 1, to stationary ones of any sum. (B,).

    ``stationary`` is overwritten.
    """
    return floored(_normalize(stationary).add_(given, alpha=weight), blocks)


def floored(shares: Tensor, blocks: Blocks) -> Tensor:
    """Normalize shares to the sum 1, with none near 0. Overwrites them. Shape: (B,)."""
    least = blocks.sizes(shares).div_(blocks.num_params)
    if not shares.any():  # H is zero as far as we saw
        return least
    return _normalize(torch.maximum(_normalize(shares), least.mul_(LEAST_SHARE), out=least))


def normalized(values: Tensor, total: Tensor | None = None) -> Tensor:
    """Divide by the sum, or by another total; a total of zero leaves zeros. A new tensor."""
    total = values.sum() if total is None else total
    return values / total.clamp(min=torch.finfo(values.dtype).tiny)


def _normalize(values: Tensor) -> Tensor:
    """Divide by the sum in place; a sum of zero leaves zeros."""
    return values.div_(values.sum().clamp(min=torch.finfo(values.dtype).tiny))


def to_scale(shares: Tensor, blocks: Blocks) -> Tensor:
    """Turn shares into the diagonal of S^(-1/2), a number for each block. Shape: (B,)."""
    return blocks.sizes(shares).div_(shares).sqrt_()


def to_shares(scale: Tensor, blocks: Blocks) -> Tensor:
    """Undo :func:`to_scale`."""
    return blocks.sizes(scale).div_(scale).div_(scale)


def certify(
    hvp: Callable[[Tensor], Tensor],
    scale: Tensor,
    *,
    max_hvps: int,
    failure: float,
    seed: int,
) -> Lanczos:
    """Find the largest |eigenvalue| of S^(-1/2) H S^(-1/2). ``scale`` is S^(-1/2), shape (d,)."""
    return lanczos(
        lambda v: hvp(scale * v) * scale,
        normal(len(scale), seed=seed, dtype=scale.dtype, device=scale.device),
        max_hvps=max_hvps,
        tol=CERTIFICATE_TOL,
        failure=failure,
        num_kept=NUM_KEPT,
    )
