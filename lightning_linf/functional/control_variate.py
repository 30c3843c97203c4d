"""What the probes did to rows of a known norm, taken off as far as it explains the estimate."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOG_CAUCHY_VARIANCE = math.pi**2 / 4  # Var log|c| of a standard Cauchy c


class Correction(NamedTuple):
    """What an estimate is to be divided by, and the error that is left."""

    divisor: Tensor  # ()
    relative_error: Tensor  # (): two of it cover 95 %, however few the probes


def corrected(
    tensor_parts: Tensor,
    tensor_log_means: Tensor,
    log_ratios: Tensor,
    *,
    observed: Callable[[Tensor], Tensor],
    expected: Callable[[int], float],
    unseen: Tensor,
) -> Correction:
    r"""Divide by ``(1 - c) expected + c observed``, with a coefficient c fitted to the probes.

    Where all rows share the probes' errors, the known rows show them, and to divide by what they
    show takes it off (c = 1). Where rows share nothing (c = 0), that would add an error that the
    estimate does not have, and the bias of the mean is known. Per probe, the log of the estimate is
    regressed on that of the known rows. The coefficient is the slope plus its standard error, cut
    to [0, 1]: where few probes leave it open, a slope too low costs more than one too high.

    The error is that of a jackknife over probes, each left out of the estimate, of the known rows
    and of the fit; times Student's t over the normal one. log|Cauchy| has the excess kurtosis 2, so
    that a variance from n of them has n/2 degrees of freedom (Box 1953).

    Args:
        tensor_parts: What each of T tensors adds to the estimate, as yet without a correction.
            Shape (T,), sum above 0.
        tensor_log_means: Per probe, mean over each tensor's rows of the log. Shape (n, T), n >= 4.
        log_ratios: Log of each of m known rows' value over its scale. Shape (m, n).
        observed: The estimate that known rows give, over their scale, from their mean log ratios;
            shape (..., m) to (...).
        expected: Its mean at so many probes, where rows share nothing.
        unseen: Variance of the mean log of one probe that ``tensor_log_means`` do not show, from
            :func:`unseen_variance`. Shape ().

    Source:
        Efron & Stein, The Jackknife Estimate of Variance, Ann. Statist. 9 (1981). The rule of one
        standard error is ours: on 15 matrices and networks the slope itself was up to 15 % worse
        than c = 1 at 8 probes, with it 3 % (`benchmarks/one_one_norm.py`).
    """
    n = len(tensor_log_means)
    controls = log_ratios.mean(dim=0)  # (n,)
    total = tensor_parts.sum()
    coefficient = _slope(tensor_log_means @ (tensor_parts / total), controls)
    divisor = torch.lerp(
        total.new_tensor(expected(n)), observed(log_ratios.mean(dim=1)), coefficient
    )
    others = torch.arange(n, device=total.device).expand(n, n)
    others = others[~torch.eye(n, dtype=torch.bool, device=total.device)].view(n, n - 1)
    steps = (tensor_log_means - tensor_log_means.mean(dim=0)) / (n - 1)
    parts = tensor_parts * (-steps).exp()  # (n, T): row k without probe k
    totals = parts.sum(dim=1, keepdim=True)
    targets = (parts / totals) @ tensor_log_means.T  # (n, n)
    coefficients = _slope(targets.gather(1, others), controls[others])
    means = (log_ratios.sum(dim=1, keepdim=True) - log_ratios).T / (n - 1)  # (n, m)
    divisors = torch.lerp(total.new_tensor(expected(n - 1)), observed(means), coefficients)
    logs = totals.squeeze(1).log() - divisors.log()
    variance = _widening(n / 2) ** 2 * (n - 1) * logs.var(correction=0) + unseen / n
    return Correction(divisor, variance.sqrt())


def unseen_variance(row_shares: Tensor, sizes: Sequence[int], tensor_log_means: Tensor) -> Tensor:
    r"""Variance of one probe's mean log that means over tensors miss, as their rows are unequal.

    A row's log has the variance pi^2/4; what of it the rows of a tensor do not share averages out
    as over ``1 / sum of share^2`` rows, not as over all of them.

    Args:
        row_shares: Of each row in the estimate, noisy as they are. Shape (d,), sum 1.
        sizes: Number of rows of each tensor. Length T, sum d.
        tensor_log_means: Shape (n, T).

    Returns:
        The variance, shape ().
    """
    n = len(tensor_log_means)
    # E x^2 / (E x)^2 of a geometric mean of n, which makes noisy shares more unequal than they are
    noise = (math.cos(math.pi / (2 * n)) ** 2 / math.cos(math.pi / n)) ** n
    alone = (LOG_CAUCHY_VARIANCE - tensor_log_means.var(dim=0)).clamp(min=0.0)  # (T,)
    seen, actual = [], []
    for part in row_shares.split_with_sizes(list(sizes)):
        seen.append(part.sum().square() / (part > 0).sum().clamp(min=1))
        actual.append(part.square().sum() / noise)
    return (alone * (torch.stack(actual) - torch.stack(seen)).clamp(min=0.0)).sum()


def _slope(targets: Tensor, controls: Tensor) -> Tensor:
    """Slope of targets (..., n) on controls plus its standard error, in [0, 1]. Shape: (...)."""
    degrees = targets.shape[-1] - 2
    x = controls - controls.mean(dim=-1, keepdim=True)
    y = targets - targets.mean(dim=-1, keepdim=True)
    squares = x.square().sum(dim=-1).clamp(min=torch.finfo(x.dtype).tiny)
    slope = (x * y).sum(dim=-1) / squares
    left = (y - slope[..., None] * x).square().sum(dim=-1) / degrees
    return (slope + (left / squares).sqrt()).clamp(0.0, 1.0)


def _widening(degrees: float) -> float:
    """97.5 % quantile of Student's t over that of the normal law (Cornish & Fisher)."""
    z, v = 1.959964, degrees
    first, second = (z**2 + 1) / 4, (5 * z**4 + 16 * z**2 + 3) / 96
    third = (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384
    return 1 + first / v + second / v**2 + third / v**3
