import itertools

import numpy as np
import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
from scipy.stats import spearmanr

from comparison import ranks


def test_spearman_is_that_of_scipy_also_with_ties_and_infinite_losses():
    draw = np.random.default_rng(0)
    predicted = draw.integers(0, 4, size=(50, 7)).astype(float)  # many ties
    losses = draw.normal(size=(50, 7))
    losses[::5, 3] = np.inf  # diverged: ranks last
    found = ranks.spearman(predicted, losses)
    finite = np.where(np.isinf(losses), 1e6, losses)
    expected = [spearmanr(p, -loss).statistic for p, loss in zip(predicted, finite, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_of_many_optimizers_orders_are_drawn_and_that_found_counts():
    best, draw = np.arange(10.0)[None], np.random.default_rng(0)
    assert ranks.permutation_p([(best, -best)]) == 1 / (1 + ranks._NUM_DRAWS)
    some = draw.normal(size=(1, 10))
    p = ranks.permutation_p([(best, some)])
    expected = spearmanr(best[0], -some[0], alternative="greater").pvalue  # by Student's t
    assert p == pytest.approx(expected, abs=0.02)


def test_spearman_by_hand():
    rho = ranks.spearman(np.array([[3.0, 2.0, 2.0]]), np.array([[0.1, 0.2, 0.3]]))
    assert rho == pytest.approx([np.sqrt(0.75)])  # ranks 3, 1.5, 1.5 against 3, 2, 1
    assert ranks.spearman(np.ones((1, 3)), np.array([[0.1, 0.2, 0.3]])) == pytest.approx([0.0])


@pytest.mark.parametrize(("num_tasks", "num_optimizers"), [(1, 5), (2, 4), (3, 3)])
def test_p_is_the_share_of_all_arrangements_that_order_as_well(num_tasks, num_optimizers):
    draw = np.random.default_rng(num_tasks)
    shape = (2, num_optimizers)
    tasks = [(draw.normal(size=shape).round(), draw.normal(size=shape)) for _ in range(num_tasks)]
    found = np.mean([ranks.spearman(*task).mean() for task in tasks])
    as_good = total = 0
    for orders in itertools.product(
        itertools.permutations(range(num_optimizers)), repeat=num_tasks
    ):
        rhos = [
            ranks.spearman(predicted[:, list(order)], losses).mean()
            for (predicted, losses), order in zip(tasks, orders, strict=True)
        ]
        as_good += np.mean(rhos) >= found - 1e-9
        total += 1
    assert ranks.permutation_p(tasks) == pytest.approx(as_good / total)


def test_a_perfect_order_of_four_has_the_least_p_there_is():
    order = np.arange(4.0)[None]
    assert ranks.permutation_p([(order, -order)]) == pytest.approx(1 / 24)
    assert ranks.permutation_p([(order, -order)] * 2) == pytest.approx(1 / 24**2)
    assert ranks.permutation_p([(np.ones((1, 4)), order)]) == 1.0


def test_a_drawn_p_agrees_with_the_exact_one(monkeypatch):
    draw = np.random.default_rng(5)
    tasks = [(draw.normal(size=(1, 5)), draw.normal(size=(1, 5))) for _ in range(2)]
    exact = ranks.permutation_p(tasks)
    monkeypatch.setattr(ranks, "_MOST_EXACT", 1)
    error = (exact * (1 - exact) / 100_000) ** 0.5
    assert 0.01 < exact < 0.99
    assert abs(ranks.permutation_p(tasks) - exact) < 5 * error + 1e-5


def test_seeds_of_a_task_are_permuted_together():
    order = np.arange(4.0)[None]
    many = np.repeat(order, 10, axis=0)  # ten seeds that say the same are one piece of evidence
    assert ranks.permutation_p([(many, -many)]) == pytest.approx(1 / 24)


def test_p_of_leads_counts_all_signs():
    assert ranks.sign_flip_p(np.array([0.3, 0.2, 0.1])) == pytest.approx(1 / 8)
    # Of +-3 +-2 +-1, a sum of at least 3 - 2 + 1 = 2 comes with 6, 4 and 2.
    assert ranks.sign_flip_p(np.array([3.0, -2.0, 1.0])) == pytest.approx(3 / 8)
    assert ranks.sign_flip_p(np.zeros(4)) == 1.0
