"""What each partition leaves of Adam's decrease in one step."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reports import block, favouring_adam, make_report

from lightning_linf.report import Interval


def with_errors(report, curvature, **errors):
    along = dict.fromkeys(report.smoothness, 0.0) | errors
    return replace(report, curvature=curvature, step_advantage_relative_error=along)


CURVATURE = {"coordinate": 4.0, "tensor": 5.0, "global": 40.0}


def test_shares_equal_numbers_by_hand():
    report = favouring_adam(tensor=(4, 5), tensor_dual=5.0)
    advice = with_errors(report, CURVATURE).recommend()
    # Decreases over that of Adam at its lower end, 16/4: 25/5 and 25/4; at its upper, 16/5: 25/4.
    assert advice.shares["tensor"] == Interval(1.25, 1.953125)
    assert advice.step_shares["tensor"] == Interval(1.25, 1.25)
    assert advice.shares["global"] == Interval(0.08, 0.125)
    assert advice.step_shares["global"] == Interval(0.1, 0.1)
    assert list(advice.shares) == list(advice.step_shares) == ["global", "tensor", "coordinate"]
    assert advice.num_blocks == {"global": 1, "tensor": 2, "coordinate": 8}
    assert advice.partition == "tensor"
    assert str(advice).startswith(
        "By both measures, one second moment for each block of 'tensor' (2 for 8 parameters) "
        "reaches 90 % of Adam's decrease in one step. This is no recommendation: "
    )
    assert "global 0.1, 0.08 to 0.125; tensor 1.25, 1.25 to 1.95." in str(advice)


def test_errors_of_both_steps_add_up():
    report = favouring_adam(tensor=(4, 5), tensor_dual=5.0)
    errors = {"coordinate": math.log(2) / 1.96, "tensor": math.log(3) / 1.96}
    advice = with_errors(report, CURVATURE, **errors).recommend()
    assert advice.step_shares["tensor"].lower == pytest.approx(1.25 / 6)
    assert advice.step_shares["tensor"].upper == pytest.approx(1.25 * 6)
    assert advice.step_shares["global"].upper == pytest.approx(0.2)
    assert advice.partition is None


@pytest.mark.parametrize(
    "change",
    [
        {"step_advantage_relative_error": None},
        {"settings": {"stage": "start"}},
        {"curvature": CURVATURE | {"tensor": 7.0}},  # 0.89 of Adam's along its step
        {"curvature": CURVATURE | {"tensor": -1.0}},
        {"dual_norm": {"coordinate": 4.0, "tensor": 4.2, "global": 4.0}},  # 0.88 at worst
        {"smoothness": {"tensor": block(2, 4, 5, lower_increase=0.5)}},
        {"smoothness": {"coordinate": block(8, 4, 5, operator_upper_residual=0.5)}},
    ],
)
def test_nothing_is_shown_unless_all_of_it_is(change):
    report = with_errors(favouring_adam(tensor=(4, 5), tensor_dual=5.0), CURVATURE)
    assert report.recommend().partition == "tensor"
    if "smoothness" in change:
        change = {"smoothness": report.smoothness | change["smoothness"]}
    advice = replace(report, **change).recommend()
    assert advice.partition is None
    assert str(advice).startswith("No coarser partition is shown by both measures to reach 90 %")
    assert "nan" not in str(advice)


def test_an_exact_tie_reaches_the_share():
    report = with_errors(favouring_adam(tensor=(4, 5), tensor_dual=4.0), CURVATURE)  # 0.8 by both
    assert report.recommend(0.8).partition == "tensor"
    assert report.recommend(0.8000001).partition is None


def test_the_surer_of_two_with_the_same_number_of_blocks_is_taken():
    report = favouring_adam(tensor=(4, 4), tensor_dual=4.0)
    more = replace(
        report,
        smoothness=report.smoothness | {"layer": block(2, 3, 3)},
        dual_norm=report.dual_norm | {"layer": 4.0},
        curvature=CURVATURE | {"tensor": 4.0, "layer": 3.0},
        step_advantage_relative_error=dict.fromkeys((*CURVATURE, "layer"), 0.0),
    )
    assert more.recommend(0.8).partition == "layer"


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
    report = make_report(smoothness, {name: draw(positive) for name in names}, num_params=1000)
    errors = {name: draw(st.floats(0, 0.1)) for name in names}
    return with_errors(report, {name: draw(positive) for name in names}, **errors)


@settings(database=None, deadline=None)
@given(report=measured(), keeps=st.tuples(*2 * [st.floats(0.01, 1)]).map(sorted))
def test_a_larger_share_never_gives_a_coarser_partition(report, keeps):
    low, high = (report.recommend(keep) for keep in keeps)
    if high.partition is not None:
        assert low.partition is not None
        assert low.num_blocks[low.partition] <= high.num_blocks[high.partition]
