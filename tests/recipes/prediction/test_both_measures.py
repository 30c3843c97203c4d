"""The rule that `recommend(0.9)` was, on reports whose numbers are known."""

import math
from dataclasses import replace

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
from support.reports import block, favouring_adam

from prediction.both_measures import coarsest

CURVATURE = {"coordinate": 4.0, "tensor": 5.0, "global": 40.0}


def with_errors(report, **errors):
    along = dict.fromkeys(report.smoothness, 0.0) | errors
    return replace(report, curvature=CURVATURE, step_advantage_relative_error=along)


@pytest.mark.parametrize(
    "change",
    [
        {"step_advantage_relative_error": None},
        {"step_advantage_relative_error": {"coordinate": 0.0, "tensor": math.log(3)}},
        {"settings": {"stage": "start"}},
        {"curvature": CURVATURE | {"tensor": 7.0}},  # 0.89 of Adam's along its step
        {"curvature": CURVATURE | {"tensor": -1.0}},
        {"dual_norm": {"coordinate": 4.0, "tensor": 4.2, "global": 4.0}},  # 0.88 at worst
        {"smoothness": {"tensor": block(2, 4, 5, lower_increase=0.5)}},
        {"smoothness": {"coordinate": block(8, 4, 5, operator_upper_residual=0.5)}},
    ],
)
def test_a_partition_is_named_only_where_all_of_it_is_shown(change):
    report = with_errors(favouring_adam(tensor=(4, 5), tensor_dual=5.0))
    assert coarsest(report, 0.9) == "tensor"
    if "smoothness" in change:
        change = {"smoothness": report.smoothness | change["smoothness"]}
    assert coarsest(replace(report, **change), 0.9) is None


def test_an_exact_tie_reaches_the_share():
    report = with_errors(favouring_adam(tensor=(4, 5), tensor_dual=4.0))  # 0.8 by both
    assert coarsest(report, 0.8) == "tensor"
    assert coarsest(report, 0.8000001) is None


def test_the_surer_of_two_with_the_same_number_of_blocks_is_taken():
    report = favouring_adam(tensor=(4, 4), tensor_dual=4.0)
    more = replace(
        report,
        smoothness=report.smoothness | {"layer": block(2, 3, 3)},
        dual_norm=report.dual_norm | {"layer": 4.0},
        curvature=CURVATURE | {"tensor": 4.0, "layer": 3.0},
        step_advantage_relative_error=dict.fromkeys((*CURVATURE, "layer"), 0.0),
    )
    assert coarsest(more, 0.8) == "layer"
