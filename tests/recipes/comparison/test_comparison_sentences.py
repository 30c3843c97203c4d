import dataclasses

import pytest
from support.comparisons import rates, record_of

from comparison import compare, sentences, tables, variants


@pytest.mark.parametrize(
    ("adam", "rotated", "expected"),
    [
        (
            (5.0, 4.5, 4.75), (5.0, 4.75, 5.0),
            "After 250 steps, training loss at the best of the rates tried, one seed: Adam 4.500, "
            "rotated Adam 4.750.",
        ),
        ((5.0, 4.5), (5.0, 4.75, 5.0), "cannot be compared: the best rate of one of them is an"),
        ((5.0, 4.5, 4.75), (4.5, 5.0), "cannot be compared: the best rate of one of them is an"),
        ((None, None), (4.5, 5.0), "cannot be compared: one of them diverged at every rate."),
        (None, (4.5, 5.0), "Adam and rotated Adam were not both run."),
    ],
)  # fmt: skip
def test_the_sweep_gives_the_losses_of_adam_unless_a_rate_is_an_end(adam, rotated, expected):
    results = {variants.ROTATED_ADAM: rates(*rotated)}
    if adam is not None:
        results[variants.ADAM] = rates(*adam)
    assert expected in sentences.comparison_sentence(results, 250)


def entries(adam=(1.0, 1.25), sgd=(3.0, 3.5)):
    return (
        (variants.ADAM, 0.1, adam, (1.0, 2.0), (1.25,)),
        (variants.ROTATED_ADAM, 0.1, (2.0, 2.26), (5.0, 6.0), (2.0,)),
        (variants.FEW[2], 0.1, (1.5, 1.0), (3.0, 4.0), (1.5,)),
        (variants.SGD, 1.0, sgd, (0.5, 0.75), (3.5,)),
        (variants.ROTATED_SGD, 1.0, (3.0, 3.50001), (0.5, 0.75), (None,)),
    )


def test_the_sentences_of_other_seeds_say_what_came_out():
    against, norms, unmoved, own, there, free, rounding = sentences.seeds_sentences(
        record_of(*entries())
    )
    # Of differences 1 and 1.01, and of 2 and 2.25: t of one degree of freedom is 12.706.
    assert (
        "mean over n = 2 seeds (95 % interval). Above Adam's: rotated Adam +1.005 (+0.941 to"
        in (against)
    )
    assert "SGD +2.125 (+0.537 to +3.713)" in against
    assert " Not told apart: blockwise Adam (tensor) +0.125 (-4.640 to +4.890)." in against
    assert "1.5 for Adam (1 to 2 by seed), 5.5 for rotated Adam (5 to 6)." in norms
    assert "differ by 1e-05 at most, in the mean over n = 2 seeds by 5e-06." in unmoved
    # Seed 0: H 1 5 3 0.5 and losses 1 2 1.5 3, with ranks 2 4 3 1 and 1 3 2 4: 1 - 6 * 12 / 60.
    # Seed 1: H 2 6 4 0.75 and losses 1.25 2.26 1 3.5, with ranks 2 4 3 1 and 2 3 1 4: 1 - 6*14/60.
    assert "H(Phi) where each run ended and the training loss: Spearman's rho within a seed" in own
    assert "-0.30, mean over n = 2 seeds (-0.4 to -0.2 by seed; p = " in own
    # There H 1 9 3 10, for both seeds: ranks 1 3 2 4, of which seed 1 swaps two.
    assert "0.90, mean over n = 2 seeds (0.8 to 1 by seed; p = 0.083 over the orders of 4" in there
    # Finer first: Adam, tensor, rotated Adam, SGD, as it happens the same.
    assert "0.90, mean over n = 2 seeds (0.8 to 1 by seed; p = 0.083 over the orders of 4" in free
    assert 'The guess "finer is better"' in free
    assert "mean over n = 1 by: Adam 0.25 (0.25), rotated Adam 0 (0), blockwise Adam" in rounding
    assert "rotated SGD diverged once." in rounding


def test_shaken_runs_must_show_the_same():
    def against(*shaken):
        adam = (variants.ADAM, 0.1, (1.0, 1.25), (1.0, 2.0), (1.0, 1.25))
        rotated = (variants.ROTATED_ADAM, 0.1, (2.0, 2.26), (5.0, 6.0), shaken)
        return sentences.seeds_sentences(record_of(adam, rotated))[0]

    shown = "rotated Adam +1.005 (+0.941 to +1.069), shaken"
    assert f"Above Adam's: {shown} +1.005 (" in against(2.0, 2.26)
    assert f"Not told apart: {shown} +1.100 (-0.171 to +2.371)." in against(2.0, 2.45)
    assert f"Not told apart: {shown} -0.505 (-0.569 to -0.441)." in against(0.5, 0.74)
    # Of one seed that is left, shaken runs show nothing.
    assert "Above Adam's: rotated Adam +1.005 (+0.941 to +1.069)." in against(2.0, None)


def test_nothing_is_concluded_of_a_rate_at_an_end_or_of_what_diverged():
    found = record_of(*entries(sgd=(3.0, None)), ends=(variants.ROTATED_ADAM,))
    text = "\n".join(sentences.seeds_sentences(found))
    assert "No conclusion: the best rate of rotated Adam, 0.1, is an end of those tried." in text
    assert "No conclusion: SGD diverged with 1 of 2 seeds." in text
    assert "rotated Adam +" not in text
    assert "(1,1)-norm" not in text
    assert "with and without rotation" not in text
    assert "There are too few optimizers to rank them: 2." in text
    assert tables.seeds_rows(found)[3][3] == "1/2 diverged"
    alone = record_of((variants.SGD, 1.0, (1.0, 2.0), (1.0, 2.0), ()))
    assert sentences.seeds_sentences(alone) == ["There are too few optimizers to rank them: 1."]


def test_without_adams_runs_nothing_is_compared_with_them():
    text = "\n".join(sentences.seeds_sentences(record_of(*entries(adam=(1.0, None)))))
    assert "No conclusion: Adam diverged with 1 of 2 seeds." in text
    assert "less that of Adam" not in text
    assert "where Adam's run ended" not in text
    assert "H(Phi) where each run ended" in text


def test_rotated_sgd_is_at_an_end_where_sgd_is():
    end, inside = (
        {variants.SGD: rates(*losses), variants.ROTATED_SGD: rates(1.0)}
        for losses in ((1.0, 2.0, 3.0), (2.0, 1.0, 3.0))
    )
    for variant in (variants.SGD, variants.ROTATED_SGD):
        assert compare._is_end(end, variant)
        assert not compare._is_end(inside, variant)
        assert not compare._is_end(inside, dataclasses.replace(variant))
