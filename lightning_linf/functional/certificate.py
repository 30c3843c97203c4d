"""Upper bounds of an operator norm: certificates, each for a choice of weights of the blocks.

For any positive weights s the norm is at most ``sum_b s_b d_b`` times the largest absolute
eigenvalue of ``S^(-1/2) H S^(-1/2)``, where S is the diagonal matrix of the weight of each
coordinate's block. Here weights are given as *shares* ``s_b d_b`` of sum 1. Any shares give a bound
that holds, so they may be as inexact as they are cheap: they have the dtype of the products.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks
from lightning_linf.functional.lambda_max import NUM_KEPT, Lanczos, lanczos
from lightning_linf.functional.random import normal

CERTIFICATE_TOL = 1e-2  # relative distance of the two bounds of the eigenvalue at which to stop
LEAST_SHARE = 1e-3  # of a coordinate's share over the mean share: S^(-1/2) must not overflow
SHARPNESS = 12.0  # how much more an eigenvector counts than one of half its eigenvalue


def first_shares(product: Tensor, shares: Tensor | None, blocks: Blocks) -> Tensor:
    """Choose the shares of the first certificate, midway between stationary and given ones.

    Args:
        product: H v, where an ascent of the lower end has stopped at v. Shape (d,).
        shares: Other good shares, of any sum, shape (B,); None: the sizes of the blocks.
        blocks: The partition.
    """
    given = blocks.sizes(product) if shares is None else shares
    if given.shape != (blocks.num_blocks,) or not (given >= 0).all():
        raise ValueError(
            f"operator_norm: expected `shares` of shape ({blocks.num_blocks},) and at least 0, "
            f"got shape {tuple(given.shape)} and smallest {float(given.min())}."
        )
    middle = normalized(stationary_shares(product, blocks))
    middle += normalized(given).to(middle)
    return floored(middle, blocks)


def stationary_shares(product: Tensor, blocks: Blocks) -> Tensor:
    """Compute ``sqrt(d_b) norm2((Hv)_b)`` of H v, over the largest entry of H v. Shape: (B,).

    An ascent that has stopped at v is stationary for these shares; where the lower and the upper
    end of the norm meet, no others are better.
    """
    relative = normalized(product, torch.linalg.vector_norm(product, torch.inf))
    if blocks.num_blocks == blocks.num_params:
        return relative.abs_()
    norms = blocks.block_sum(relative.square_()).sqrt_()
    return norms.mul_(blocks.sizes(norms).sqrt_())


def floored(shares: Tensor, blocks: Blocks) -> Tensor:
    """Normalize shares to the sum 1, with none near 0. Shape: (B,)."""
    least = blocks.sizes(shares) / blocks.num_params
    if not shares.any():  # H is zero as far as we saw
        return least
    return normalized(torch.maximum(normalized(shares), least.mul_(LEAST_SHARE), out=least))


def normalized(values: Tensor, total: Tensor | None = None) -> Tensor:
    """Divide by the sum, or by another total; a total of zero leaves zeros. A new tensor."""
    total = values.sum() if total is None else total
    return values / total.clamp(min=torch.finfo(values.dtype).tiny)


def to_scale(shares: Tensor, blocks: Blocks) -> Tensor:
    """Turn shares into the diagonal of S^(-1/2), a number for each block. Shape: (B,)."""
    return (blocks.sizes(shares) / shares).sqrt_()


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


def eigenvector_weights(krylov: Lanczos) -> Tensor:
    """Weigh approximate eigenvectors: the larger the |eigenvalue|, the more. Sum 1, shape (m,)."""
    sizes = krylov.values.abs()
    return torch.softmax(SHARPNESS * (sizes / sizes.max().clamp(min=1e-300) - 1), dim=0)


def random_combination(krylov: Lanczos, weights: Tensor, seed: int) -> Tensor:
    """Add up the approximate eigenvectors times weights times random normal numbers. (d,)."""
    signs = normal(len(weights), seed=seed, dtype=weights.dtype)
    return krylov.combine(krylov.vectors @ (weights * signs))


def block_masses(krylov: Lanczos, weights: Tensor, blocks: Blocks) -> Tensor:
    """Average the squared norm of each block over the weighted unit eigenvectors. Shape: (B,)."""
    total: Tensor | None = None
    for index, weight in enumerate(weights.tolist()):
        if weight < LEAST_SHARE:
            continue
        mass = normalized(blocks.block_sum(krylov.ritz_vector(index).square_())).mul_(weight)
        total = mass if total is None else total.add_(mass)
    assert total is not None  # the largest weight is at least 1 / m
    return total
