"""The one rule of the verdict: its order, and what no numbers can make it say."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reports import DUAL_NORM, SMOOTHNESS, block, make_report

from lightning_linf.report import GeometryReport
from lightning_linf.report.shares import shares_sentence
from lightning_linf.report.text import describe

NO_ERROR = dict.fromkeys(DUAL_NORM, 0.0)
OPEN = {  # as above, and with more products to come
    name: SMOOTHNESS | {name: replace(SMOOTHNESS[name], lower_increase=0.5)}
    for name in ("coordinate", "tensor", "global")
}


def point(dual, along, error=0.0, **changes):
    """Make a report whose bracket is that of a dual norm, and whose step has this advantage."""
    dual_norm = DUAL_NORM | {"coordinate": dual}
    curvature = {"global": 2.0, "tensor": 2.0, "coordinate": 2.0 * (dual / 4) ** 2 / along}
    errors = NO_ERROR | {"coordinate": error}
    made = make_report(dual_norm=dual_norm, curvature=curvature)
    return replace(made, **{"step_advantage_relative_error": errors, **changes})


# A dual norm of 4 has a bracket of 2 to 3.12, one of 2.5 of 0.781 to 1.22, one of 2 of 0.5 to 0.781
@pytest.mark.parametrize(
    ("report", "status", "words"),
    [
        (point(4.0, 3.0), "favours adam", "Favours Adam's geometry, by both measures."),
        (point(2.0, 0.5), "favours sgd", "Favours SGD's geometry, by both measures."),
        (point(4.0, 0.5), "mixed", "Mixed: the two measures contradict each other."),
        (point(2.0, 3.0), "mixed", "Mixed: the two measures contradict each other."),
        (point(2.5, 3.0), "undecided", "Undecided: the range by the largest curvature includes 1"),
        (point(4.0, 3.0, error=0.6), "undecided", "Undecided: the error over batches includes 1"),
        (point(4.0, 3.0, error=math.nan), "undecided", "is not known. Measure on more of them."),
        (point(4.0, 3.0, error=math.inf), "undecided", "3 times, with an unknown error"),
        (point(4.0, 3.0, step_advantage_relative_error=None), "undecided", "is not known"),
        (point(4.0, -3.0), "undecided", "Undecided: the loss does not curve upwards along both"),
        (point(2.5, 3.0, smoothness=OPEN["global"]), "not converged", "Not converged: the range"),
        (point(2.5, 3.0, smoothness=OPEN["coordinate"]), "not converged", "products could narrow"),
        (point(2.5, 3.0, smoothness=OPEN["tensor"]), "undecided", "Undecided: the range by the"),
        (point(2.5, 3.0, error=0.6, smoothness=OPEN["global"]), "undecided", "error over batches"),
        (point(2.5, 3.0, error=math.nan, smoothness=OPEN["global"]), "undecided", "not known."),
        (point(2.5, -3.0, smoothness=OPEN["global"]), "undecided", "does not curve upwards"),
        (point(4.0, 3.0, smoothness=OPEN["global"]), "favours adam", "Favours Adam's geometry"),
        (point(2.0, 0.5, smoothness=OPEN["coordinate"]), "favours sgd", "Favours SGD's geometry"),
        (point(4.0, 0.5, smoothness=OPEN["global"]), "mixed", "Mixed: the two measures"),
        (point(4.0, 3.0, settings={"stage": "start"}), "too early", "loss has not left its start."),
        (point(4.0, 3.0, settings={"stage": "warm-up"}), "too early", "rate is still rising."),
        (point(4.0, 3.0, settings={"stage": "training"}), "favours adam", "Favours Adam's"),
        (make_report(dual_norm=dict.fromkeys(DUAL_NORM, 0.0)), "undefined", "Undefined: with a"),
    ],
)  # fmt: skip
def test_the_first_rule_that_applies_is_the_status(report, status, words):
    assert report.verdict_status == status
    assert words in report.verdict
    assert report.verdict.lower().startswith(status)


def test_the_evidence_is_the_step_with_its_interval_and_then_the_bracket():
    verdict = point(4.0, 3.0, error=math.log(2) / 1.96).verdict
    assert "lowers the loss 3 (1.5 to 6 over batches) times as far as one of SGD's (l2)" in verdict
    assert "and 2 to 3.12 times by the largest that each can meet" in verdict


def test_what_has_no_error_comes_second_in_the_evidence_and_what_is_undefined_not_at_all():
    bracket = "lowers the loss 2 to 3.12 times as far as one of SGD's (l2) by the largest curvature"
    unknown = point(4.0, 3.0, error=math.nan).verdict
    assert bracket in unknown
    assert "and 3 times, with an unknown error over batches, by the curvature along" in unknown
    downwards = point(4.0, -3.0).verdict
    assert bracket in downwards
    assert "along each" not in downwards


positive = st.floats(1e-3, 1e3)
relative = st.sampled_from([0.0, 0.005, 0.02])


@st.composite
def reports(draw):
    names = ["coordinate", "tensor", "global"]
    smoothness = {}
    for name, num_blocks in zip(names, (1000, 10, 1), strict=True):
        lower = draw(positive)
        upper = lower * draw(st.floats(1, 4))
        ends = {"lower_increase": draw(relative), "operator_upper_residual": draw(relative)}
        smoothness[name] = block(num_blocks, lower, upper, **ends)
    errors = {name: draw(st.floats(0, 1) | st.sampled_from([math.inf, math.nan])) for name in names}
    stage = draw(st.sampled_from([None, "start", "warm-up", "training"]))
    return make_report(
        smoothness,
        {name: draw(positive | st.just(0.0)) for name in names},
        num_params=1000,
        curvature={name: draw(positive | st.floats(-1, 0)) for name in names},
        step_advantage_relative_error=draw(st.sampled_from([None, errors])),
        settings={} if stage is None else {"stage": stage},
    )


@settings(database=None, max_examples=500)
@given(report=reports())
def test_no_report_contradicts_itself_or_favours_what_is_not_shown(report):
    status, sentence = report.verdict_status, report.verdict
    bracket, step = report.advantage["coordinate"], report.step_advantage_interval["coordinate"]
    ends = [report.smoothness[name] for name in ("coordinate", "global")]
    assert ("Favours" in sentence) == (status in ("favours adam", "favours sgd"))
    assert ("Adam's geometry, by both" in sentence) == (status == "favours adam")
    if status == "favours adam":
        assert min(bracket.lower, step.lower) > 1
        assert report.step_advantage["coordinate"] > 1
    if status == "favours sgd":
        assert max(bracket.upper, step.upper) < 1
        assert report.step_advantage["coordinate"] < 1
    if status == "not converged":
        assert 1 in bracket
        assert not all(each.converged for each in ends)
    if status.startswith("favours") or status in ("mixed", "not converged"):
        assert 1 not in step
        assert report.settings.get("stage") not in ("start", "warm-up")
        assert report.step_advantage_relative_error is not None
    assert "no forecast" in sentence or status == "undefined"
    for word in ("promise", "certain", "keep", "recommend"):
        assert word not in f"{sentence} {shares_sentence(report)}".lower()


@settings(database=None, max_examples=200)
@given(report=reports(), share=st.floats(0, 1))
def test_more_products_change_no_verdict_but_those_that_the_bracket_leaves_open(report, share):
    narrow = {}
    for name, each in report.smoothness.items():
        middle = math.sqrt(each.lower * each.operator_upper)
        lower = each.lower ** (1 - share) * middle**share
        upper = each.operator_upper ** (1 - share) * middle**share
        narrow[name] = replace(each, lower=min(lower, upper), operator_upper=upper)
    later = replace(report, smoothness=narrow)
    if 1 not in report.advantage["coordinate"]:
        assert later.verdict_status == report.verdict_status


@settings(database=None, max_examples=100)
@given(report=reports())
def test_every_place_says_the_same_of_any_report(report):
    text = describe(report)
    data = report.to_dict()
    assert text.verdict == data["verdict"] == report.verdict
    assert text.verdict_status == data["verdict_status"] == report.verdict_status
    assert text.shares == data["shares"] == shares_sentence(report)
    again = GeometryReport.from_json(report.to_json())
    assert (again.verdict, again.verdict_status) == (report.verdict, report.verdict_status)


def test_a_report_of_an_earlier_version_is_undecided():
    data = point(4.0, 3.0).to_dict() | {"advice": "Row."}
    for key in ("step_advantage_relative_error", "verdict_status"):
        del data[key]
    assert GeometryReport.from_dict(data).verdict_status == "undecided"
