import math

import numpy as np
import pytest
from support.comparisons import rates, record_of

from comparison import sentences, tables, variants


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(sentences, "_NUM_RESAMPLES", 200)


@pytest.mark.parametrize(
    ("adam", "rotated", "expected"),
    [
        ((5.0, 4.5), (5.0, 4.75), "ahead of rotated Adam by 0.250 in training loss (4.500 against"),
        ((5.0, 4.75), (4.5, 5.0), "Adam is behind rotated Adam by 0.250"),
        ((5.0, None), (4.995, None), "Adam is level with rotated Adam, within 0.01"),
        ((None, None), (4.5, 5.0), "cannot be compared: one of them diverged at every rate."),
        (None, (4.5, 5.0), "Adam and rotated Adam were not both run."),
    ],
)
def test_the_comparison_says_whether_adam_is_ahead(adam, rotated, expected):
    results = {variants.ROTATED_ADAM: rates(*rotated)}
    if adam is not None:
        results[variants.ADAM] = rates(*adam)
    assert expected in sentences.comparison_sentence(results, 250)


def test_the_sentences_of_other_seeds_say_what_came_out():
    record = record_of(
        (variants.ADAM, 0.1, (1.0, 1.25), (1.0, 2.0), "tensor"),
        (variants.ROTATED_ADAM, 0.1, (2.0, 2.5), (5.0, 6.0), "coordinate"),
        (variants.FEW[2], 0.1, (1.5, 1.75), (3.0, 4.0), "coordinate"),
        (variants.SGD, 1.0, (3.0, 3.5), (0.5, 0.75), "coordinate"),
        (variants.ROTATED_SGD, 1.0, (3.0, 3.50001), (0.5, 0.75), "coordinate"),
    )
    text = "\n".join(sentences.seeds_sentences(record))
    assert "Adam is ahead of rotated Adam by 1.125 in training loss, mean of 2 seeds (1 to" in text
    assert "over seeds: 0.177 and 0.354." in text
    assert "own coordinates: 1.5 for Adam (1 to 2), 5.5 for rotated Adam (5 to 6)." in text
    assert "the training losses differ by 1e-05 at most." in text
    own = "Spearman's rho of H(Phi) at the end of each run and the training loss"
    assert f"{own} (without SGD, 3 optimizers, 6 runs): 1.00, 95 % interval" in text
    there = "Spearman's rho of H(Phi) at the end of Adam's run and the training loss"
    assert f"{there} (without SGD, 3 optimizers, 6 runs): 0.97, 95 % interval" in text
    # Ranks of H 1 2 3.5 3.5 5.5 5.5 7.5 7.5, as SGD's is 10, and of the losses 1 to 8, of which SGD
    # has the last two: 40.5 / sqrt(40.5 * 42).
    assert f"{there} (all, 4 optimizers, 8 runs): 0.98, 95 % interval" in text
    assert f"{own} (all, 4 optimizers, 8 runs): -0.14, 95 % interval" in text
    assert "tensor on 2 of 2, where training ends +0.500 above Adam." in text
    assert "Blockwise Adam against Adam: tensor +0.500." in text


def test_the_sentences_tell_divergence_and_missing_variants():
    record = record_of(
        (variants.ADAM, 0.1, (1.0, None), (1.0, 2.0), "coordinate"),
        (variants.ROTATED_ADAM, 0.1, (2.0, 2.5), (5.0, 6.0), "coordinate"),
        (variants.SGD, 1.0, (3.0, 3.5), (0.5, 0.75), "coordinate"),
        (variants.ROTATED_SGD, 1.0, (None, 3.5), (0.5, 0.75), "coordinate"),
    )
    text = "\n".join(sentences.seeds_sentences(record))
    assert "cannot be compared: runs of one of them diverged" in text
    assert "SGD and rotated SGD cannot be compared: runs of one of them diverged." in text
    assert "at the end of Adam's run and" not in text
    assert tables.seeds_rows(record)[0][2] == "1/2 diverged"
    assert "(without SGD): 1 optimizers, too few." in text
    assert sentences.seeds_sentences(record_of((variants.SGD, 1.0, (1.0, 2.0), (1.0, 2.0), "x")))


def test_rank_correlation_and_its_interval():
    rising = [[(1.0, 10.0)], [(2.0, 20.0)], [(3.0, 15.0)], [(4.0, 40.0)]]
    assert sentences.rank_correlation(rising)[0] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    tied = [[(1.0, 1.0)], [(1.0, 2.0)], [(2.0, 3.0)]]
    assert sentences.rank_correlation(tied)[0] == pytest.approx(math.sqrt(0.75))
    assert all(map(math.isnan, sentences.rank_correlation([[(1.0, 1.0)], [(1.0, 2.0)]])))
    groups = [[(float(i), float(i))] for i in range(6)]
    assert sentences.rank_correlation(groups) == pytest.approx((1.0, 1.0, 1.0))
    mixed = [[(float(i), float(j))] for i, j in enumerate((2, 0, 1, 4, 3, 5))]
    rho, lower, upper = sentences.rank_correlation(mixed)
    assert -1 <= lower < rho < upper <= 1


def test_a_resample_draws_whole_optimizers():
    groups = [[(1.0, 3.0), (2.0, 1.0)], [(3.0, 2.0), (4.0, 6.0)], [(5.0, 5.0), (6.0, 4.0)]]
    _, lower, upper = sentences.rank_correlation(groups)
    draw = np.random.default_rng(0)
    found = []
    for _ in range(200):
        x, y = np.concatenate([groups[i] for i in draw.integers(3, size=3)]).T
        ranks = [(values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
                 for values in (x, y)]  # fmt: skip
        found.append(np.corrcoef(*ranks)[0, 1])
    assert (lower, upper) == pytest.approx(np.quantile(found, [0.025, 0.975]))
