"""Upper bounds of an operator norm: certificates, each for a choice of weights of the blocks.

For any positive weights s the norm is at most ``sum_b s_b d_b`` times the largest absolute
eigenvalue of ``S^(-1/2) H S^(-1/2)``, where S is the diagonal matrix of the weight of each
coordinate's block. Here weights are given as *shares* ``s_b d_b`` of sum 1. Any shares give a bound
that holds, so they may be as inexact as they are cheap: they have the dtype of the products.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks, num_values, sum_over_blocks
from lightning_linf.functional.in_pieces import local_largest_magnitude
from lightning_linf.functional.lambda_max import NUM_KEPT, Lanczos, lanczos
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.functional.vector_shards import any_nonzero, max_over_shards, num_entries

CERTIFICATE_TOL = 1e-2  # relative distance of the two bounds of the eigenvalue at which to stop
LEAST_SHARE = 1e-3  # of a coordinate's share over the mean share: S^(-1/2) must not overflow


def given_shares(shares: Tensor | None, blocks: Blocks, like: Tensor) -> Tensor:
    """Check shares, of any sum; None: the sizes of the blocks. Shape: (B,)."""
    given = blocks.sizes(like) if shares is None else shares
    num_shares = num_values(blocks)
    if given.shape != (num_shares,) or any_nonzero(~(given >= 0)):
        smallest = float(given.min()) if given.numel() else 0.0
        raise ValueError(
            f"operator_norm: expected `shares` of shape ({num_shares},) and at least 0, "
            f"got shape {tuple(given.shape)} and smallest {smallest}."
        )
    return normalized(given, sum_over_blocks(given, blocks)).to(like)


def stationary_shares(products: Sequence[Tensor], blocks: Blocks) -> Tensor:
    """Compute ``sqrt(d_b) ||(H V)_b||`` of the products H V, over a common factor. Shape: (B,).

    An ascent that has stopped at the columns V is stationary for these shares; where it has reached
    the adaptive smoothness, no others are better.
    """
    largest = torch.stack([local_largest_magnitude(product) for product in products]).max()
    largest = max_over_shards(largest)
    squares: Tensor | None = None
    for product in products:
        part = normalized(product, largest).square_()
        part = part if blocks.is_identity else blocks.block_sum(part)
        squares = part if squares is None else squares.add_(part)
    assert squares is not None
    norms = squares.sqrt_()
    return norms.mul_(blocks.sizes(norms).sqrt_())


def mixed_shares(stationary: Tensor, given: Tensor, weight: float, blocks: Blocks) -> Tensor:
    """Add ``weight`` times the given shares, of sum 1, to stationary ones of any sum. (B,).

    ``stationary`` is overwritten.
    """
    return floored(_normalize(stationary, blocks).add_(given, alpha=weight), blocks)


def floored(shares: Tensor, blocks: Blocks) -> Tensor:
    """Normalize shares to the sum 1, with none near 0. Overwrites them. Shape: (B,)."""
    least = blocks.sizes(shares).div_(blocks.num_params)
    if not any_nonzero(shares):  # H is zero as far as we saw
        return least
    shares = _normalize(shares, blocks)
    return _normalize(torch.maximum(shares, least.mul_(LEAST_SHARE), out=least), blocks)


def normalized(values: Tensor, total: Tensor) -> Tensor:
    """Divide by a total; a total of zero leaves zeros. A new tensor."""
    return values / total.clamp(min=torch.finfo(values.dtype).tiny)


def _normalize(values: Tensor, blocks: Blocks) -> Tensor:
    """Divide by the sum in place; a sum of zero leaves zeros."""
    return values.div_(sum_over_blocks(values, blocks).clamp(min=torch.finfo(values.dtype).tiny))


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
        normal_vector(num_entries(scale), seed=seed, like=scale),
        max_hvps=max_hvps,
        tol=CERTIFICATE_TOL,
        failure=failure,
        num_kept=NUM_KEPT,
    )
