"""What follows from the measured numbers by arithmetic."""

import math
from dataclasses import replace

import pytest
from support.reports import (
    DUAL_NORM,
    SMOOTHNESS,
    block,
    make_report,
)

from lightning_linf.report import Interval


def test_interval_holds_its_ends():
    assert 3.0 in Interval(3.0, 4.0)
    assert 4.1 not in Interval(3.0, 4.0)
    assert str(Interval(3.14159, 4.6)) == "3.14 to 4.6"
    assert str(Interval(1.0, 1.0)) == "1"


def test_advantage_and_decrease_equal_numbers_by_hand():
    report = make_report()
    assert report.advantage == {
        "coordinate": Interval((4 / 5) / (16 / 10), (4 / 4) / (16 / 12.5)),
        "tensor": Interval(0.703125, 1.171875),
        "global": Interval(1.0, 1.0),
    }
    assert report.decrease == {
        "coordinate": Interval(0.4, 0.5),
        "tensor": Interval(0.5625, 0.75),
        "global": Interval(0.64, 0.8),
    }


def test_ratio_compares_d_lambda_max_with_the_one_one_norm():
    report = make_report()
    assert report.one_one_norm_per_param == 0.75
    assert report.ratio == 8 * 1.25 / 6
    assert math.isnan(make_report(one_one_norm=0.0, lambda_max=0.0).ratio)


def test_converged_asks_both_ends():
    assert block(1, 1, 1, lower_increase=0.01, operator_upper_residual=0.01).converged
    assert not block(1, 1, 1, lower_increase=0.011).converged
    assert not block(1, 1, 1, operator_upper_residual=0.011).converged
    assert not block(1, 1, 1, operator_upper_residual=math.nan).converged


def test_zero_gradient_has_no_advantage_and_no_decrease():
    report = make_report(dual_norm=dict.fromkeys(DUAL_NORM, 0.0))
    assert math.isnan(report.advantage["tensor"].lower)
    assert report.advantage["global"] == Interval(1.0, 1.0)
    assert report.decrease["tensor"] == Interval(0.0, 0.0)
    assert report.verdict_status == "undefined"
    assert "Undefined" in str(report)


def test_zero_hessian_has_no_bound_of_the_decrease_and_no_advantage():
    report = make_report(
        {name: replace(b, lower=0.0, operator_upper=0.0) for name, b in SMOOTHNESS.items()}
    )
    assert math.isnan(report.advantage["coordinate"].upper)
    assert report.decrease["coordinate"] == Interval(math.inf, math.inf)
    assert report.verdict_status == "undefined"
    assert "inf" in str(report)


def test_zero_lower_end_alone_leaves_the_advantage_open_above():
    report = make_report(SMOOTHNESS | {"coordinate": block(8, 0.0, 5)})
    assert report.advantage["coordinate"] == Interval(0.5, math.inf)
    assert report.verdict_status == "undecided"


def test_step_advantage_is_by_the_curvature_along_the_step():
    curvature = {"global": 8.0, "tensor": 2.0, "coordinate": 4.0}
    report = make_report(curvature=curvature)  # dual norms 4, 3, 2
    assert report.step_advantage == {"global": 1.0, "tensor": 9 / 16 * 4, "coordinate": 1 / 4 * 2}
    assert report.to_dict()["step_advantage"]["tensor"] == 2.25
    downwards = make_report(curvature=curvature | {"coordinate": -1.0})
    assert math.isnan(downwards.step_advantage["coordinate"])
    nothing = make_report(curvature=dict.fromkeys(curvature, 0.0))
    assert all(math.isnan(value) for value in nothing.step_advantage.values())


def test_step_interval_and_share_equal_numbers_by_hand():
    half = math.log(2) / 1.96
    report = make_report(
        curvature={"global": 8.0, "tensor": 2.0, "coordinate": 4.0},
        step_advantage_relative_error={"coordinate": half, "tensor": math.inf, "global": 0.0},
    )
    interval = report.step_advantage_interval
    assert (interval["coordinate"].lower, interval["coordinate"].upper) == pytest.approx((0.25, 1))
    assert interval["tensor"] == Interval(0.0, math.inf)
    assert interval["global"] == Interval(1.0, 1.0)
    share = report.step_share("global")
    assert (share.lower, share.upper) == pytest.approx((1, 4))
    assert report.step_share("tensor") == Interval(0.0, math.inf)
    assert report.step_share("coordinate") == Interval(1.0, 1.0)
    unknown = make_report()
    assert math.isnan(unknown.step_advantage_interval["coordinate"].lower)
    assert math.isnan(unknown.step_share("global").upper)


def test_report_needs_both_ends_of_the_scale_and_a_dual_norm_for_each_partition():
    without = {name: SMOOTHNESS[name] for name in ("coordinate", "tensor")}
    with pytest.raises(ValueError, match='to have "coordinate" and "global", got'):
        make_report(without, {name: DUAL_NORM[name] for name in without})
    with pytest.raises(ValueError, match="expected `dual_norm` to have the partitions of"):
        make_report(dual_norm={"coordinate": 1.0, "global": 2.0})
    with pytest.raises(ValueError, match="expected `curvature` to have the partitions of"):
        make_report(curvature={"coordinate": 1.0, "global": 2.0})
