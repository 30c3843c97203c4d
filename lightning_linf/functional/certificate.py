"""Upper bounds of an operator norm: certificates, each for a choice of weights of the blocks.

For any positive weights s the norm is at most ``sum_b s_b d_b`` times the largest absolute
eigenvalue of ``S^(-1/2) H S^(-1/2)``, where S is the diagonal matrix of the weight of each
coordinate's block. Here weights are given as *shares* ``s_b d_b`` of sum 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_linf.functional.blocks import Blocks
from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.lambda_max import Lanczos, lanczos
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
    sizes = blocks.sizes(product.to(wide_dtype(product)))
    given = sizes if shares is None else shares.to(sizes)
    if given.shape != sizes.shape or not (given >= 0).all():
        raise ValueError(
            f"operator_norm: expected `shares` of shape ({blocks.num_blocks},) and at least 0, "
            f"got shape {tuple(given.shape)} and smallest {float(given.min())}."
        )
    parts = [p / p.sum() for p in (stationary_shares(product, blocks), given) if p.sum() > 0]
    return floored(sum(parts, torch.zeros_like(sizes)), blocks)


def stationary_shares(product: Tensor, blocks: Blocks) -> Tensor:
    """Compute ``sqrt(d_b) norm2((Hv)_b)`` of H v, over the largest entry of H v. Shape: (B,).

    An ascent that has stopped at v is stationary for these shares; where the lower and the upper
    end of the norm meet, no others are better.
    """
    wide = product.to(wide_dtype(product))
    largest = wide.abs().amax().clamp(min=torch.finfo(wide.dtype).tiny)
    norms = blocks.block_sum((wide / largest).square()).sqrt()
    return blocks.sizes(norms).sqrt() * norms


def floored(shares: Tensor, blocks: Blocks) -> Tensor:
    """Normalize shares to the sum 1, with none near 0. Shape: (B,)."""
    sizes = blocks.sizes(shares)
    total = shares.sum()
    if not total > 0:  # H is zero as far as we saw
        return sizes / sizes.sum()
    least = torch.maximum(shares / total, LEAST_SHARE * sizes / sizes.sum())
    return least / least.sum()


def certify(
    hvp: Callable[[Tensor], Tensor], scale: Tensor, max_hvps: int, failure: float, seed: int
) -> Lanczos:
    """Find the largest |eigenvalue| of S^(-1/2) H S^(-1/2). ``scale`` is S^(-1/2), shape (d,)."""
    return lanczos(
        lambda v: scale * hvp(scale * v),
        normal(len(scale), seed=seed, dtype=scale.dtype, device=scale.device),
        max_hvps=max_hvps,
        tol=CERTIFICATE_TOL,
        failure=failure,
        keep_basis=True,
    )


def eigenvector_weights(krylov: Lanczos) -> Tensor:
    """Weigh approximate eigenvectors: the larger the |eigenvalue|, the more. Sum 1, shape (k,)."""
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
        vector = krylov.ritz_vector(index)
        mass = blocks.block_sum(vector.to(wide_dtype(vector)).square())
        mass = weight * mass / mass.sum()
        total = mass if total is None else total + mass
    assert total is not None  # the largest weight is at least 1 / k
    return total
