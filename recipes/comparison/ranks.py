"""Rank correlations within a seed, and how often chance alone would give as much."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Values = npt.NDArray[np.float64]
FINEST_FIRST = (
    "spectral", "coordinate", "row", "head", "tensor", "coordinate rotated", "global",
)  # fmt: skip
"""The guess "finer is better", which needs no measurement, the best first: Muon's matrices, as its
repute has it, then fine blocks, then coarse ones. Adam's blocks in rotated coordinates are as fine,
but follow nothing in the network, so that only one block is worse."""
_MOST_EXACT = 200_000  # arrangements of all tasks together that are all counted
_NUM_DRAWS = 100_000
_ROUNDING = 1e-9


def standardized_ranks(values: Values) -> Values:
    """Rank along the last axis, ties by their mean, to mean 0 and sum of squares 1.

    A row of equal values, which ranks nothing, becomes 0.
    """
    ranks = rankdata(values, axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.where(norms > 0, norms, 1.0), dtype=np.float64)


def spearman(predicted: Values, losses: Values) -> Values:
    """Correlate the ranks of predictions, larger for better, with those of losses, for each row.

    Returns:
        Spearman's rho of each row, 1 if what is predicted to be better has the lower loss; 0 where
        a prediction, or the loss, is the same for all. Shape (n,) of (n, k).
    """
    products = standardized_ranks(predicted) * standardized_ranks(-losses)
    return np.asarray(products.sum(axis=-1), dtype=np.float64)


def permutation_p(tasks: Sequence[tuple[Values, Values]]) -> float:
    """Tell how often predictions given to the optimizers at random rank as well, or better.

    Each task has one permutation of its optimizers for all its seeds, which are not independent.
    All arrangements are counted if there are few, with the one that was found among them; else
    100,000 are drawn, and the one that was found is counted as one more.

    Args:
        tasks: Predictions and losses of each task, both of shape (seeds, optimizers).

    Returns:
        The share of arrangements whose mean rho over tasks is at least the one found.
    """
    by_task = [_rho_by_permutation(*task) for task in tasks]
    found = float(np.mean([rhos[0] for rhos in by_task]))
    if math.prod(map(len, by_task)) <= _MOST_EXACT:
        sums = np.zeros(1)
        for rhos in by_task:
            sums = np.add.outer(sums, rhos).ravel()
        return float(np.mean(sums / len(by_task) >= found - _ROUNDING))
    draw = np.random.default_rng(0)
    sums = sum((draw.choice(rhos, _NUM_DRAWS) for rhos in by_task), start=np.zeros(_NUM_DRAWS))
    as_good = int(np.sum(sums / len(by_task) >= found - _ROUNDING))
    return (1 + as_good) / (1 + _NUM_DRAWS)


def _rho_by_permutation(predicted: Values, losses: Values) -> Values:
    """Give the mean rho over seeds for every order of the optimizers, that found first.

    Of more than eight optimizers there are too many orders, and 100,000 others are drawn.
    """
    ranks, of_losses = standardized_ranks(predicted), standardized_ranks(-losses)
    orders = _orders(ranks.shape[-1])
    total = np.zeros(len(orders))
    for one, other in zip(ranks, of_losses, strict=True):
        total += one[orders] @ other
    return total / len(ranks)


def _orders(num: int) -> npt.NDArray[np.int64]:
    if math.factorial(num) <= _MOST_EXACT:
        return np.array(list(itertools.permutations(range(num))))
    first = np.tile(np.arange(num), (1 + _NUM_DRAWS, 1))
    first[1:] = np.random.default_rng(0).permuted(first[1:], axis=1)
    return first


def sign_flip_p(differences: Values) -> float:
    """Tell how often the mean is as large when each difference has a random sign.

    All signs are counted, so with T tasks no p is below 1 / 2^T.
    """
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(differences))))
    means = signs @ differences / len(differences)
    return float(np.mean(means >= differences.mean() - _ROUNDING))
