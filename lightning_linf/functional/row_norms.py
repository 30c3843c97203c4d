"""The 1-norm of each row of the Hessian, from Cauchy probes."""

import math

from torch import Tensor


def row_norms(products: Tensor) -> Tensor:
    r"""Estimate the 1-norm of each row of the Hessian, :math:`\sum_j |H_{ij}|`, without bias.

    If the entries of ``v`` are independent standard Cauchy numbers, entry i of ``H v`` is a Cauchy
    number whose scale is the 1-norm of row i. The geometric mean of its magnitude over the probes,
    times a known factor, has exactly that scale as its mean.

    Args:
        products: Rows ``H v`` for ``k >= 3`` independent standard Cauchy ``v``. Shape (k, d).

    Returns:
        The estimates, shape (d,), in the units of ``H`` (loss per parameter squared).

    Raises:
        ValueError: If ``products`` is not 2-D, has fewer than 3 rows, or is not finite.

    Source:
        Li, Hastie & Church, JMLR 8 (2007), the bias-corrected geometric mean. Relative standard
        deviation of each entry: about 1.6 / sqrt(k).
    """
    if products.ndim != 2:
        raise ValueError(
            f"one_one_norm: expected `products` of shape (k, d), got {tuple(products.shape)}. "
            "Stack the k products H v."
        )
    if not products.isfinite().all():
        raise ValueError(
            "one_one_norm: expected finite `products`, got inf or NaN. "
            "Look at the loss and the parameters at this point."
        )
    num_probes = len(products)
    if num_probes < 3:  # E|c|^(2/k) of a Cauchy c, hence the variance, is finite from k = 3
        raise ValueError(
            f"one_one_norm: expected at least 3 probes, got {num_probes}. Draw more probes."
        )
    log_sum = products.abs().log().sum(dim=0)
    # E|c|^(1/k) = 1 / cos(pi / 2k) for standard Cauchy c: this factor removes the bias.
    debias = math.cos(math.pi / (2 * num_probes)) ** num_probes
    return debias * (log_sum / num_probes).exp()  # a zero row has log_sum = -inf and gives 0
