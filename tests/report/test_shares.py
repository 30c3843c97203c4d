"""What each partition leaves of Adam's decrease in one step, in words."""

import math
from dataclasses import replace

import pytest
from support.reports import DUAL_NORM, SMOOTHNESS, favouring_adam, make_report

from lightning_linf.report.interval import Interval, of_ratio
from lightning_linf.report.shares import shares_sentence

CURVATURE = {"coordinate": 4.0, "tensor": 5.0, "global": 40.0}


def with_errors(**errors):
    along = dict.fromkeys(CURVATURE, 0.0) | errors
    report = favouring_adam(tensor=(4, 5), tensor_dual=5.0)
    return replace(report, curvature=CURVATURE, step_advantage_relative_error=along)


def test_shares_equal_numbers_by_hand_and_stand_from_coarse_to_fine():
    # Decreases over that of Adam at its lower end, 16/4: 25/5 and 25/4; at its upper, 16/5: 25/4.
    assert shares_sentence(with_errors()) == (
        "Share of Adam's decrease in one step, by the curvature along each step, and by the "
        "largest that it can meet: global 0.1, 0.08 to 0.125; tensor 1.25, 1.25 to 1.95."
    )


def test_errors_of_both_steps_add_up():
    errors = {"coordinate": math.log(2) / 1.96, "tensor": math.log(3) / 1.96}
    sentence = shares_sentence(with_errors(**errors))
    assert "global 0.05 to 0.2, 0.08 to 0.125; tensor 0.208 to 7.5, 1.25 to 1.95." in sentence


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (make_report(), "global unknown, 1.28 to 2; tensor unknown, 1.12 to 1.88."),
        (make_report(dual_norm=dict.fromkeys(DUAL_NORM, 0.0)), "global unknown, unknown; tensor"),
        (
            make_report(
                {name: replace(b, lower=0.0, operator_upper=0.0) for name, b in SMOOTHNESS.items()}
            ),
            "tensor unknown, unknown.",
        ),
    ],
)
def test_what_is_not_known_is_said_to_be_unknown(report, words):
    assert words in shares_sentence(report)
    assert "nan" not in shares_sentence(report)


def test_an_interval_that_says_nothing_is_not_written_in_digits():
    assert of_ratio(Interval(1e-9, 1e8)) == "unknown to a factor of 1,000"
    assert of_ratio(Interval(0.01, 9.0)) == "0.01 to 9"
    assert of_ratio(Interval(math.nan, 1.0)) == "unknown"
    assert of_ratio(Interval(0.0, math.inf)) == "unknown"
