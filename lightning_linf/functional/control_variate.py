"""Take off an estimate the error that its rows share, as seen in made-up rows of known norm."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.runs import RowParts, tensor_sums
from lightning_linf.functional.surrogates import LOG_CAUCHY_VARIANCE


class Correction(NamedTuple):
    """What an estimate is to be divided by, and the error that is left."""

    divisor: Tensor  # ()
    relative_error: Tensor  # (): standard error, widened so that two of it cover about 95 %


def corrected(
    row_parts: RowParts,
    sizes: Sequence[int],
    run_log_means: Tensor,
    log_ratios: Tensor,
    *,
    observed: Callable[[Tensor], Tensor],
    expected: Callable[[int], float],
) -> Correction:
    r"""Compute what to divide an estimate by: ``(1 - c) expected + c observed``.

    The estimate is a sum over rows of geometric means over probes. *Surrogates* are rows of known
    norm that met the same probes; ``observed`` is the factor by which the same sum gets their norm
    wrong, and ``expected`` the mean of that factor over all draws of the probes. Where all rows
    share the error that the probes make, surrogates show it, and c = 1 takes it off. Where rows
    share nothing, that would add an error, and only the known bias should go: c = 0.

    So c is fitted: for each probe, what it adds to the log of the estimate is regressed on what it
    adds to the log of the surrogates. c is the slope times one plus the slope's standard error, cut
    to [0, 1]: with few probes the slope is uncertain, and too low a c costs more than too high one.

    The stated error comes from a jackknife: each probe in turn is left out of the estimate, the
    surrogates and the fit. It is widened by Student's t over the normal quantile. log|Cauchy| has
    the excess kurtosis 2, so a variance from n of them has n/2 degrees of freedom (Box 1953).

    Args:
        row_parts: What the rows of each run add to the estimate, as yet without a correction; sum
            above 0.
        sizes: Number of rows of each tensor. Length T, sum d.
        run_log_means: For each probe, the mean of log|Hv| over the non-zero rows of each run
            (:func:`~lightning_linf.functional.runs.run_counts`). Shape (n, R), n >= 4.
        log_ratios: Log of the product of each of m surrogates with each probe, over the norm of
            the surrogate. Shape (m, n).
        observed: Computes the factor above from the means over probes of the log ratios. Shapes:
            (..., m) -> (...).
        expected: The mean of that factor for a number of probes.

    Source:
        Efron & Stein, The Jackknife Estimate of Variance, Ann. Statist. 9 (1981). The rule of one
        standard error is ours: at 8 probes the slope itself was 15 % worse than c = 1 on one of 15
        matrices, a contrastive loss.
    """
    n = len(run_log_means)
    total = row_parts.sums.sum()
    shares, counts = row_parts.sums / total, row_parts.counts  # (R,)
    by_tensor = partial(tensor_sums, sizes=sizes)
    # The fit takes plain means over tensors: where rows share nothing, weights would add noise.
    tensor_counts = by_tensor(counts).clamp(min=1)
    tensor_log_means = by_tensor(run_log_means * counts) / tensor_counts  # (n, T)
    controls = log_ratios.mean(dim=0)  # (n,)
    coefficient = _slope(tensor_log_means @ by_tensor(shares), controls)
    divisor = torch.lerp(
        total.new_tensor(expected(n)), observed(log_ratios.mean(dim=1)), coefficient
    )
    others = torch.arange(n, device=total.device).expand(n, n)
    others = others[~torch.eye(n, dtype=torch.bool, device=total.device)].view(n, n - 1)
    # To leave out probe k moves the mean log of a run by -step[k]; row k of all below is without k.
    steps = (run_log_means - run_log_means.mean(dim=0)) / (n - 1)
    parts = shares * (-steps).exp()  # (n, R)
    totals = parts.sum(dim=1, keepdim=True)
    targets = by_tensor(parts / totals) @ tensor_log_means.T  # (n, n)
    coefficients = _slope(targets.gather(1, others), controls[others])
    means = (log_ratios.sum(dim=1, keepdim=True) - log_ratios).T / (n - 1)  # (n, m)
    divisors = torch.lerp(total.new_tensor(expected(n - 1)), observed(means), coefficients)
    logs = totals.squeeze(1).log() - divisors.log()
    unseen = _unseen_variance(row_parts.squares / total.square(), shares, counts, run_log_means)
    variance = _widening(n / 2) ** 2 * (n - 1) * logs.var(correction=0) + unseen / n
    return Correction(divisor, variance.sqrt())


def _unseen_variance(
    squares: Tensor, shares: Tensor, counts: Tensor, run_log_means: Tensor
) -> Tensor:
    """Compute the variance that the jackknife over run means does not see, for one probe. ().

    The log of a row's product has the variance pi^2/4. The rows of a run share a part of that, as
    seen in the mean of the run. The rest is independent; it averages out as over
    ``1 / sum of share^2`` rows, fewer than the run has if the shares of its rows are unequal.
    """
    n = len(run_log_means)
    # Shares are noisy, and so look more unequal than they are: by E x^2 / (E x)^2 of a geometric
    # mean x of n probes.
    noise = (math.cos(math.pi / (2 * n)) ** 2 / math.cos(math.pi / n)) ** n
    alone = (LOG_CAUCHY_VARIANCE - run_log_means.var(dim=0)).clamp(min=0.0)  # (R,)
    seen = shares.square() / counts.clamp(min=1)
    actual = squares / noise  # sums of the squared shares of rows
    return (alone * (actual - seen).clamp(min=0.0)).sum()


def _slope(targets: Tensor, controls: Tensor) -> Tensor:
    """Regress on controls; raise the slope by its error, cut to [0, 1]. (..., n) -> (...)."""
    degrees = targets.shape[-1] - 2
    x = controls - controls.mean(dim=-1, keepdim=True)
    y = targets - targets.mean(dim=-1, keepdim=True)
    squares = x.square().sum(dim=-1).clamp(min=torch.finfo(x.dtype).tiny)
    slope = (x * y).sum(dim=-1) / squares
    left = (y - slope[..., None] * x).square().sum(dim=-1) / degrees
    return (slope * (1 + (left / squares).sqrt())).clamp(0.0, 1.0)


def _widening(degrees: float) -> float:
    """Divide the 97.5 % quantile of Student's t by the normal one (Cornish & Fisher's series)."""
    z, v = 1.959964, degrees
    first, second = (z**2 + 1) / 4, (5 * z**4 + 16 * z**2 + 3) / 96
    third = (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384
    return 1 + first / v + second / v**2 + third / v**3
