"""The verdict, and the partition that is recommended."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reports import (
    DUAL_NORM,
    SMOOTHNESS,
    block,
    favouring_adam,
    make_report,
    trained_gpt2,
    words,
)

from lightning_linf.report import Interval


@pytest.mark.parametrize(
    ("dual", "words"),
    [
        (4.0, "favours Adam's geometry over SGD's: .* promises 2 to 3.12 times"),
        (2.5, "Adam's geometry and SGD's are not distinguishable: .* promises 0.781 to 1.22 times"),
        (2.0, "favours SGD's geometry over Adam's: .* promises 0.5 to 0.781 times"),
    ],
)
def test_verdict_is_one_sentence_with_the_bracket(dual, words):
    report = make_report(dual_norm=DUAL_NORM | {"coordinate": dual})
    assert re.search(words, report.verdict)
    assert report.verdict.count(". ") == 0
    assert report.verdict.endswith(".")


def test_verdict_names_what_has_not_converged():
    report = make_report(SMOOTHNESS | {"global": replace(SMOOTHNESS["global"], lower_increase=0.5)})
    assert "(not converged: global)" in report.verdict
    assert "Not converged, so less sure: global." in str(report.recommend())


def test_recommend_equals_numbers_by_hand():
    advice = favouring_adam(tensor=(4, 5), tensor_dual=5.0).recommend()
    # Decreases over that of Adam at its lower end, 16/4: 25/5 and 25/4; at its upper, 16/5: 25/4.
    assert advice.partition == "tensor"
    assert advice.share == Interval(1.25, 1.953125)
    assert advice.estimates["tensor"] == 1.5625
    assert advice.estimates["global"] == 0.1
    assert advice.shares["global"] == Interval(0.08, 0.125)
    assert list(advice.shares) == ["global", "tensor", "coordinate"]
    assert advice.undecided == []
    assert (advice.num_params, advice.num_blocks) == (8, 2)
    assert advice.second_moment_bytes_saved == 24
    assert advice.saved_fraction == 6 / 16


def test_recommend_keeps_adam_and_names_what_it_cannot_tell():
    advice = favouring_adam(tensor_dual=4.0, global_=(4.1, 50)).recommend()
    assert advice.partition == "coordinate"
    assert advice.undecided == ["global"]  # tensor: at most (16/6) / (16/5) = 0.833, too little
    assert advice.share == Interval(1.0, 1.0)
    assert advice.second_moment_bytes_saved == 0
    assert "No coarser partition is shown to keep 90 %" in str(advice)
    assert "Not distinguishable from 90 %: global 0.976 (0.08 to 1.22)." in str(advice)


def test_recommend_takes_an_exact_tie_with_keep():
    report = favouring_adam(tensor=(4, 5), tensor_dual=4.0)  # certainly 0.8
    assert report.recommend(0.8).partition == "tensor"
    assert report.recommend(0.8000001).partition == "coordinate"
    assert report.recommend(0.8000001).undecided == ["tensor"]


def test_recommend_takes_the_surer_of_two_with_the_same_number_of_blocks():
    report = favouring_adam(tensor=(4, 4), tensor_dual=4.0)
    more = {"layer": block(2, 3, 3), "coordinate": report.smoothness["coordinate"]}
    report = replace(
        report,
        smoothness=report.smoothness | more,
        dual_norm=report.dual_norm | {"layer": 4.0},
        curvature=report.curvature | {"layer": 1.0},
    )
    assert report.recommend().partition == "layer"


def test_undecided_are_only_those_coarser_than_the_recommended():
    report = favouring_adam(tensor=(1, 100), tensor_dual=4.0, global_=(4, 4))
    assert report.recommend().partition == "global"
    assert report.recommend().undecided == []


def test_advice_in_words():
    report = trained_gpt2(
        dual_norm={"coordinate": 9.0, "row": 10.0, "tensor": 17.0, "global": 17.0}
    )
    text = str(report.recommend())
    assert text.startswith("Second moments per tensor keep 1.12 (1.09 to 1.42) of Adam's promised")
    assert "with 28 numbers instead of 370,944: 1.41 MiB saved, 50 % of Adam's state." in text
    assert "Not distinguishable from 90 %: global 0.78 (0.775 to 0.989)." in text
    assert "one step from this point, without gradient noise" in text


def test_advice_says_first_that_the_landscape_does_not_favour_adam():
    report = make_report()
    advice = report.recommend()
    assert str(advice).startswith("This point favours SGD's geometry over Adam's")
    assert "One second moment for all parameters keeps 1.6" in str(advice)
    assert "with 1 number instead of 8: 28 bytes saved, 44 % of Adam's state" in str(advice)
    assert words(str(report)).count("favours SGD's") == 1


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan])
def test_keep_outside_its_range_is_refused(keep):
    with pytest.raises(ValueError, match=r"recommend: `keep` must be in \(0, 1\], got"):
        make_report().recommend(keep)


positive = st.floats(1e-3, 1e3)


@st.composite
def measured(draw):
    names = ["coordinate", "global", *draw(st.sets(st.sampled_from(["row", "head", "tensor"])))]
    fixed = {"coordinate": 1000, "global": 1}
    smoothness = {}
    for name in names:
        lower = draw(positive)
        num_blocks = fixed.get(name) or draw(st.integers(1, 1000))
        smoothness[name] = block(num_blocks, lower, lower * draw(st.floats(1, 4)))
    return make_report(smoothness, {name: draw(positive) for name in names}, num_params=1000)


@settings(database=None, deadline=None)
@given(report=measured(), keeps=st.tuples(*2 * [st.floats(0.01, 1)]).map(sorted))
def test_a_larger_share_to_keep_never_gives_a_coarser_partition(report, keeps):
    low, high = (report.recommend(keep) for keep in keeps)
    assert low.partition in report.smoothness
    assert low.num_blocks <= high.num_blocks
    for advice in (low, high):
        assert advice.share.lower >= advice.keep
        assert "coordinate" not in advice.undecided
        # The estimate takes lower ends only, so it lies in the bracket up to rounding.
        for name, share in advice.shares.items():
            assert share.lower * (1 - 1e-9) <= advice.estimates[name] <= share.upper * (1 + 1e-9)
