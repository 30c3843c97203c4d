"""Covariance of mean losses at several points, from the losses of each batch at all of them."""

from torch import Tensor


def batch_covariance_update(losses: Tensor, weights: Tensor, means: Tensor) -> Tensor:
    """Add up squared deviations of batches from the means over all batches.

    Args:
        losses: Of M batches at P points. Shape: (M, P).
        weights: Of the batches in a mean. Shape: (M,).
        means: Of the losses of all batches, on other ranks, too. Shape: (P,).

    Returns:
        A sum over batches. Shape: (P, P).
    """
    scaled = (losses - means) * weights[:, None]
    return scaled.T @ scaled


def batch_covariance_compute(
    squares: Tensor, weight: float, num_batches: float, copies: int = 1
) -> Tensor | None:
    r"""Turn sums over all batches into the covariance of their mean losses. Shape: (P, P).

    Of n independent batches of weights w it is
    :math:`\frac{n}{n-1} \sum_b w_b^2 (x_b - \bar x)(x_b - \bar x)^T / (\sum_b w_b)^2`. As every
    point sees the same batches, the variance of a difference of two points is that of paired
    differences.

    Args:
        squares: Sum of :func:`batch_covariance_update`.
        weight: Sum of the weights.
        num_batches: How many were added.
        copies: How many times each batch was, as in tensor parallelism.

    Returns:
        The covariance; None of fewer than two batches, which tell nothing.
    """
    num_batches /= copies
    if num_batches < 2:
        return None
    return squares * (copies * num_batches / (num_batches - 1) / weight**2)
