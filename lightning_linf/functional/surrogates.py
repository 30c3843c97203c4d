"""Surrogates: rows of known norm that meet the same probes as the rows of a Hessian."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.counters import hashed_words
from lightning_linf.functional.random import cauchy, chunks, derive_seed, laplace
from lightning_linf.functional.random_vectors import numbered_chunks
from lightning_linf.functional.vector_shards import (
    max_over_shards,
    num_entries,
    sizes_here,
    sum_over_shards,
)

LOG_CAUCHY_VARIANCE = math.pi**2 / 4  # Var log|c| of a standard Cauchy c
NUM_SURROGATES = 64  # their own noise is then a tenth of what the control variate leaves
MAX_GROUPS = 1 << 16  # more coordinates than that share multipliers
_COLUMNS = 1 << 12  # groups whose multipliers are drawn at a time: 1 MiB


class Shrinkage(NamedTuple):
    """How the logarithms of row norms are moved towards the mean of their tensor. Shapes: (T,)."""

    means: Tensor
    keeps: Tensor  # shares of the distances from the mean that are kept
    largest: Tensor  # (): of all logarithms that have been moved


def surrogate_log_ratios(
    log_sums: Tensor, num_probes: int, sizes: Sequence[int], seed: int
) -> Tensor:
    """Take log(|l w v| / sum |l w|) of m surrogate rows ``l w`` and n probes v. Shape: (m, n).

    The weights w of the probes of one half are row norms estimated from the other half. The
    multipliers l are Laplace numbers; there are at most ``MAX_GROUPS`` of them. In more coordinates
    than that, number i has the multiplier of group ``i % G``, up to a random sign. The sums of
    ``w v`` over each group then serve all surrogates.

    Memory: a few chunks, and (n + 2) G numbers. Cost: n draws of d Cauchy numbers. Ranks that share
    vectors draw those of their entries, and add up these (n + 2) G numbers.

    Args:
        log_sums: Sum of log|Hv| over the even probes, and over the odd ones. Shape (2, d).
        num_probes: Number of probes n.
        sizes: Number of entries of each parameter tensor. Length T, sum d.
        seed: Seed of the probes.
    """
    dim, device = num_entries(log_sums[0]), log_sums.device
    num_groups = min(dim, MAX_GROUPS)
    halves = halves_of(num_probes)
    norms = [shrinkage(log_sums[1 - h], len(halves[1 - h]), sizes) for h in (0, 1)]
    groups = log_sums.new_zeros(2 + num_probes, num_groups)
    scales, meets = groups.tensor_split([2])
    for part, first in numbered_chunks(dim, device, multiple=num_groups):
        for h, probes in enumerate(halves):
            weights = shrunken(log_sums[1 - h], len(halves[1 - h]), norms[h], sizes, part)
            add_to_groups(scales[h], weights, first)
            _give_signs(weights, num_groups, first=first, seed=seed)
            for k in probes:
                draws = cauchy(
                    part.stop - part.start, seed=seed, probe=k, first=first,
                    dtype=weights.dtype, device=device,
                )  # fmt: skip
                add_to_groups(meets[k], draws.mul_(weights), first)
    scales, meets = sum_over_shards(groups).tensor_split([2])
    values = log_sums.new_zeros(NUM_SURROGATES, num_probes)
    norms_of_rows = log_sums.new_zeros(NUM_SURROGATES, 2)
    for columns, multipliers in multiplier_columns(scales, seed):
        values += multipliers @ meets[:, columns].T
        norms_of_rows += multipliers.abs() @ scales[:, columns].T
    return (values / by_probe(norms_of_rows, num_probes)).abs().log()


def halves_of(num_probes: int) -> list[range]:
    """Numbers of the even and of the odd probes."""
    return [range(0, num_probes, 2), range(1, num_probes, 2)]


def by_probe(of_halves: Tensor, num_probes: int) -> Tensor:
    """Give each probe the value of its half. Shapes: (m, 2) -> (m, n)."""
    return of_halves[:, torch.arange(num_probes, device=of_halves.device) % 2]


def multiplier_columns(like: Tensor, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Draw m Laplace multipliers for each group of ``like`` (..., G): some columns at a time."""
    num_groups = like.shape[-1]
    for start in range(0, num_groups, _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, num_groups))
        draws = laplace(
            (columns.stop - start) * NUM_SURROGATES, seed=seed, first=start * NUM_SURROGATES,
            dtype=like.dtype, device=like.device,
        )  # fmt: skip
        yield columns, draws.view(-1, NUM_SURROGATES).T


def add_to_groups(sums: Tensor, values: Tensor, first: int) -> None:
    """Add values number ``first``, ... in place: number i to the sum of group ``i % G``. (G,)."""
    for part, groups in _rows_of_groups(len(values), first, len(sums)):
        sums[groups] += values[part].view(-1, groups.stop - groups.start).sum(dim=0)


def _rows_of_groups(count: int, first: int, num_groups: int) -> Iterator[tuple[slice, slice]]:
    """Cut numbers from ``first`` on into a part of a row of G, whole rows together, and a part."""
    start = 0
    while start < count:
        group = (first + start) % num_groups
        whole = 0 if group else (count - start) // num_groups * num_groups
        size = whole or min(num_groups - group, count - start)
        yield slice(start, start + size), slice(group, num_groups if whole else group + size)
        start += size


def shrinkage(log_sums: Tensor, num_probes: int, sizes: Sequence[int]) -> Shrinkage:
    """Prepare to turn noisy logarithms of row norms into weights, by empirical Bayes by tensor.

    The variance of the logarithms over the rows of a tensor is that of the true ones plus a known
    variance of their noise. Each is moved towards the mean of its tensor by the share of the noise
    in that variance: by a half, say, if half of the variance is noise.

    Args:
        log_sums: Sums over ``num_probes`` probes of log|Hv|; -inf marks a zero row. Shape (d,).
        num_probes: Number of these probes.
        sizes: Number of entries of each parameter tensor. Length T, sum d.
    """
    sizes_of_parts = sizes_here(sizes)
    counts, totals = sums = log_sums.new_zeros(2, len(sizes))
    squares = log_sums.new_zeros(len(sizes))
    largest = log_sums.new_full((len(sizes),), -math.inf)
    for tensor, rows in _tensor_pieces(sizes_of_parts, log_sums.device):
        logs = log_sums[rows] / num_probes
        largest[tensor] = torch.maximum(largest[tensor], logs.max())
        counts[tensor] += logs.isfinite().sum()
        totals[tensor] += logs.nan_to_num_(neginf=0.0).sum()
    counts, totals = sum_over_shards(sums)
    largest = max_over_shards(largest)
    means = totals / counts.clamp(min=1)
    for tensor, rows in _tensor_pieces(sizes_of_parts, log_sums.device):
        distances = (log_sums[rows] / num_probes).sub_(means[tensor])
        squares[tensor] += distances.nan_to_num_(neginf=0.0).square_().sum()
    variances = sum_over_shards(squares) / counts.clamp(min=1)
    noise = LOG_CAUCHY_VARIANCE / num_probes
    keeps = ((variances - noise) / variances.clamp(min=1e-12)).clamp(min=0.0)
    return Shrinkage(means, keeps, _moved(largest, means, keeps).max())


def shrunken(
    log_sums: Tensor, num_probes: int, by: Shrinkage, sizes: Sequence[int], part: slice
) -> Tensor:
    """Compute the weights of some rows, over the largest of all; 0 for zero rows. (rows,)."""
    weights = log_sums[part] / num_probes
    for tensor, rows in _overlaps(sizes_here(sizes), part):
        logs = weights[rows]
        logs.copy_(_moved(logs, by.means[tensor], by.keeps[tensor]))
    return weights.sub_(by.largest).exp_()  # only ratios matter: no overflow


def _moved(logs: Tensor, means: Tensor, keeps: Tensor) -> Tensor:
    moved = (logs - means).mul_(keeps).add_(means)
    return moved.nan_to_num_(nan=-math.inf, neginf=-math.inf)  # NaN: -inf times 0


def _give_signs(values: Tensor, num_groups: int, *, first: int, seed: int) -> None:
    """Multiply values number ``first``, ... in place: a random sign for all i of one ``i // G``."""
    row = first // num_groups
    count = -(-(first + len(values)) // num_groups) - row
    words = hashed_words(row, count, key=derive_seed("surrogate signs", seed), device=values.device)
    signs = words.bitwise_right_shift_(31).bitwise_or_(1).to(values.dtype)
    for part, groups in _rows_of_groups(len(values), first, num_groups):
        rows = values[part].view(-1, groups.stop - groups.start)
        start = (first + part.start) // num_groups - row
        rows.mul_(signs[start : start + len(rows), None])


def _tensor_pieces(sizes: Sequence[int], device: torch.device) -> Iterator[tuple[int, slice]]:
    """Cut each tensor into chunks: its number, and the rows."""
    start = 0
    for tensor, size in enumerate(sizes):
        for part in chunks(size, device):
            yield tensor, slice(start + part.start, start + part.stop)
        start += size


def _overlaps(sizes: Sequence[int], part: slice) -> Iterator[tuple[int, slice]]:
    """Find the tensors of which ``part`` has rows: their numbers, and rows counted within it."""
    start = 0
    for tensor, size in enumerate(sizes):
        first, last = max(start, part.start), min(start + size, part.stop)
        if first < last:
            yield tensor, slice(first - part.start, last - part.start)
        start += size
