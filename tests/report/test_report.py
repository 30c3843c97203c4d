"""What a measurement found, the advice that follows, and how both are shown and kept."""

import json
import math
import os
import re
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lightning_linf.report import BlockSmoothness, GeometryReport, Interval, Noise

D = 370_944
TENSOR = {"num_params": 64, "one_one_norm_share": 0.25, "density": 0.4, "gini": 0.6}


def block(num_blocks, lower, operator_upper, upper=math.nan, **changes):
    made = BlockSmoothness(num_blocks, lower, operator_upper, upper, 0.0, 0.004, 0.003, 24)
    return replace(made, **changes)


# Chosen so that every number below is exact in binary, or divided by hand.
SMOOTHNESS = {"global": block(1, 10, 12.5), "tensor": block(2, 6, 8), "coordinate": block(8, 4, 5)}
DUAL_NORM = {"global": 4.0, "tensor": 3.0, "coordinate": 2.0}


def make_report(smoothness=None, dual_norm=None, **changes):
    made = GeometryReport(
        num_params=8,
        loss=1.5,
        density=0.25,
        one_one_norm=6.0,
        one_one_norm_relative_error=0.1,
        lambda_max=1.25,
        lambda_max_relative_error=0.01,
        dual_norm=dual_norm or DUAL_NORM,
        curvature={name: 2.0 for name in dual_norm or DUAL_NORM},
        smoothness=smoothness or SMOOTHNESS,
        r_squared={"coordinate": 1.0, "tensor": 0.5, "global": 0.0},
        per_tensor={"0.weight": TENSOR},
        noise=None,
        secant=None,
        settings={"mode": "eval", "seed": 0, "tol": 0.01, "chunk": None, "compiled": False},
        num_hvps=72,
        seconds=2.5,
    )
    return replace(made, **changes)


def trained_gpt2(**changes):
    """Make a report with the numbers of a small GPT-2."""
    dual_squared = {"coordinate": 0.14, "row": 0.35, "tensor": 0.62, "global": 1.0}
    made = make_report(
        {
            "coordinate": block(D, 7.8 * D, 9.9 * D, 25.2 * D, upper_relative_error=0.08),
            "row": block(2_953, 12.7 * D, 13.6 * D, 33.8 * D, lower_increase=0.02),
            "tensor": block(28, 24.9 * D, 25.5 * D, 57 * D),
            "global": block(1, 35.7 * D, 35.9 * D, 35.9 * D),
        },
        {name: math.sqrt(value * D / 4) for name, value in dual_squared.items()},
        num_params=D,
        density=0.14,
        one_one_norm=25.2 * D,
        one_one_norm_relative_error=0.08,
        lambda_max=35.7,
        lambda_max_relative_error=0.006,
    )
    return replace(made, **changes)


NOISE = Noise(16, 4096.0, 3.1, 0.123, math.inf, {"coordinate": 0.0054 * D, "global": 0.0105 * D})


def plain(renderable, width):
    file = StringIO()
    Console(file=file, width=width, color_system=None).print(renderable)
    return file.getvalue()


def words(text):
    return " ".join(text.split())


def test_interval_holds_its_ends_and_touching_intervals_overlap():
    assert 3.0 in Interval(3.0, 4.0)
    assert 4.1 not in Interval(3.0, 4.0)
    assert Interval(3.0, 4.0).overlaps(Interval(4.0, 5.0))
    assert not Interval(4.1, 5.0).overlaps(Interval(3.0, 4.0))
    assert Interval(math.nan, math.nan).overlaps(Interval(3.0, 4.0))
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


def test_zero_gradient_has_no_advantage_and_promises_nothing():
    report = make_report(dual_norm=dict.fromkeys(DUAL_NORM, 0.0))
    assert math.isnan(report.advantage["tensor"].lower)
    assert report.advantage["global"] == Interval(1.0, 1.0)
    assert report.decrease["tensor"] == Interval(0.0, 0.0)
    assert "undefined" in report.verdict
    assert report.recommend().partition == "coordinate"
    assert report.recommend().undecided == ["global", "tensor"]
    assert "undefined" in str(report)


def test_zero_hessian_promises_anything_and_has_no_advantage():
    report = make_report(
        {name: replace(b, lower=0.0, operator_upper=0.0) for name, b in SMOOTHNESS.items()}
    )
    assert math.isnan(report.advantage["coordinate"].upper)
    assert report.decrease["coordinate"] == Interval(math.inf, math.inf)
    assert "undefined" in report.verdict
    assert report.recommend().share == Interval(1.0, 1.0)
    assert "inf" in str(report)


def test_zero_lower_end_alone_leaves_the_advantage_open_above():
    report = make_report(SMOOTHNESS | {"coordinate": block(8, 0.0, 5)})
    assert report.advantage["coordinate"] == Interval(0.5, math.inf)
    assert "not distinguishable" in report.verdict


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


def favouring_adam(tensor=(6, 8), tensor_dual=3.0, global_=(40, 50)):
    """Make a report where, for a dual norm of 4 in both, Adam's decrease is 1.6 to 2."""
    return make_report(
        {"coordinate": block(8, 4, 5), "tensor": block(2, *tensor), "global": block(1, *global_)},
        {"coordinate": 4.0, "tensor": tensor_dual, "global": 4.0},
    )


def test_recommend_equals_numbers_by_hand():
    advice = favouring_adam(tensor=(4, 5), tensor_dual=5.0).recommend()
    # Decreases over that of Adam at its lower end, 16/4: 25/5 and 25/4; at its upper, 16/5: 25/4.
    assert advice.partition == "tensor"
    assert advice.share == Interval(1.25, 1.953125)
    assert advice.estimate == 1.5625
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


def test_step_advantage_is_by_the_curvature_along_the_step():
    curvature = {"global": 8.0, "tensor": 2.0, "coordinate": 4.0}
    report = make_report(curvature=curvature)  # dual norms 4, 3, 2
    assert report.step_advantage == {"global": 1.0, "tensor": 9 / 16 * 4, "coordinate": 1 / 4 * 2}
    assert report.to_dict()["step_advantage"]["tensor"] == 2.25
    assert "0.5 times by the curvature along the gradient" in report.verdict
    downwards = make_report(curvature=curvature | {"coordinate": -1.0})
    assert math.isnan(downwards.step_advantage["coordinate"])
    assert "curvature along the gradient" not in downwards.verdict
    nothing = make_report(curvature=dict.fromkeys(curvature, 0.0))
    assert all(math.isnan(value) for value in nothing.step_advantage.values())


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


anything = st.floats() | st.integers(-(2**70), 2**70)
by_name = st.dictionaries(st.text(), anything, max_size=3)
scalars = st.none() | st.booleans() | anything | st.text() | st.sampled_from(["NaN", "-Infinity"])


@st.composite
def arbitrary(draw):
    names = ["coordinate", "global", *draw(st.sets(st.text(), max_size=2))]
    counts = st.integers(0, 2**70)
    smoothness = {
        name: BlockSmoothness(draw(counts), *(draw(anything) for _ in range(6)), draw(counts))
        for name in names
    }
    numbers = [draw(anything) for _ in range(6)]
    noise = Noise(draw(counts), *(draw(anything) for _ in range(4)), draw(by_name))
    return GeometryReport(
        draw(st.integers(1, 2**70)),
        *numbers,
        {name: draw(anything) for name in names},
        {name: draw(anything) for name in names},
        smoothness,
        draw(by_name),
        draw(st.dictionaries(st.text(), by_name, max_size=2)),
        draw(st.sampled_from([None, noise])),
        draw(st.none() | by_name),
        draw(st.dictionaries(st.text(), scalars, max_size=3)),
        draw(counts),
        draw(anything),
    )


def refuse(word):
    raise AssertionError(f"not JSON: {word}")


def exactly(value):
    """Spell a value so that NaN equals NaN and 0.0 does not equal -0.0."""
    return repr(sorted(vars(value).items()))


@settings(database=None, deadline=None)
@given(report=arbitrary())
def test_json_round_trip_is_exact_and_strict(report):
    text = report.to_json()
    again = GeometryReport.from_json(text)
    assert exactly(again) == exactly(report)
    assert again.to_json() == text
    assert json.loads(text, parse_constant=refuse) == report.to_dict()


@settings(database=None, deadline=None, max_examples=30)
@given(report=arbitrary())
def test_no_numbers_stop_the_tables_and_the_advice(report):
    assert report.verdict in words(str(report))
    assert plain(report, 80)
    assert plain(report.compare(report), 80)
    assert str(report.recommend())


def test_dict_holds_the_computed_numbers_and_the_schema():
    data = make_report(noise=NOISE).to_dict()
    assert data["schema"] == 1
    assert data["advantage"]["tensor"] == {"lower": 0.703125, "upper": 1.171875}
    assert data["decrease"]["coordinate"] == {"lower": 0.4, "upper": 0.5}
    assert data["noise"]["noise_scale"] == "Infinity"
    assert data["smoothness"]["tensor"]["upper"] == "NaN"


def test_computed_numbers_are_not_read_back():
    report = favouring_adam()
    data = report.to_dict() | {"advantage": "nonsense"}
    del data["decrease"]
    assert GeometryReport.from_dict(data).to_dict() == report.to_dict()


def test_whole_numbers_are_read_where_a_float_may_stand():
    data = make_report().to_dict() | {"loss": 2}
    assert GeometryReport.from_dict(data).loss == 2


def with_entry(path, value):
    data = json.loads(make_report(noise=NOISE).to_json())
    *parents, last = path.split("/")
    inner = data
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "expected `schema` to be 1, got 2. Read it with the version"),
        ("schema", None, "expected `schema` to be 1, got None"),
        ("lost", 1.0, r"have the keys of GeometryReport, got \[\] missing and \['lost'\] unknown"),
        ("loss", "small", "expected `loss` to be a number, got 'small'"),
        ("loss", True, "expected `loss` to be a number, got True"),
        ("num_params", 8.0, "expected `num_params` to be a whole number, got 8.0"),
        ("num_hvps", False, "expected `num_hvps` to be a whole number, got False"),
        ("secant", [], r"expected `secant` to be an object, got \[\]"),
        ("dual_norm/tensor", None, "expected `dual_norm.tensor` to be a number, got None"),
        ("smoothness/tensor", 1, "expected `smoothness.tensor` to be an object, got 1"),
        ("smoothness/tensor", {}, "`smoothness.tensor` to have the keys of BlockSmoothness"),
        ("noise/weight", "x", "expected `noise.weight` to be a number, got 'x'"),
        ("settings/seed", [1], "expected `settings.seed` to be a string, a number, true, false or"),
        ("settings/seed", {"float": "x"}, "expected `settings.seed` to be a number, got 'x'"),
    ],
)
def test_wrong_data_is_refused_with_its_place(path, value, message):
    with pytest.raises(ValueError, match=f"GeometryReport: .*{message}"):
        GeometryReport.from_dict(with_entry(path, value))


def test_missing_key_is_named():
    data = make_report().to_dict()
    del data["loss"]
    with pytest.raises(ValueError, match=r"got \['loss'\] missing and \[\] unknown"):
        GeometryReport.from_dict(data)


def test_what_is_no_report_is_refused():
    with pytest.raises(ValueError, match="GeometryReport: expected `text` to be JSON, got 'report"):
        GeometryReport.from_json("report.json")
    with pytest.raises(ValueError, match="GeometryReport: expected `data` to be a dict, got list"):
        GeometryReport.from_json("[]")


def test_report_needs_both_ends_of_the_scale_and_a_dual_norm_for_each_partition():
    without = {name: SMOOTHNESS[name] for name in ("coordinate", "tensor")}
    with pytest.raises(ValueError, match='to have "coordinate" and "global", got'):
        make_report(without, {name: DUAL_NORM[name] for name in without})
    with pytest.raises(ValueError, match="expected `dual_norm` to have the partitions of"):
        make_report(dual_norm={"coordinate": 1.0, "global": 2.0})
    with pytest.raises(ValueError, match="expected `curvature` to have the partitions of"):
        make_report(curvature={"coordinate": 1.0, "global": 2.0})


def test_saved_report_loads_equal(tmp_path):
    report = favouring_adam()
    path = tmp_path / "new" / "report.json"
    report.save(path)
    assert GeometryReport.load(str(path)).to_json() == report.to_json()
    assert path.read_text(encoding="utf-8") == report.to_json()
    assert os.listdir(path.parent) == ["report.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, step):
    def fail(*args):
        raise OSError("disk full")

    path = tmp_path / "report.json"
    make_report().save(path)
    old = path.read_bytes()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        make_report(loss=9.0).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["report.json"]


def test_report_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    make_report().save(path)
    old = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        make_report(settings={"dtype": object()}).save(path)
    assert path.read_bytes() == old


NUMBERS = (
    "370,944", "7.8 to 9.9", "25.2 ±8 %", "0.505 to 0.644", "12.7 to 13.6", "<= 33.8", "2,953",
    "24.9 to 25.5", "<= 57", "35.7 to 35.9", "0.14", "0.61", "row *", "72",
)  # fmt: skip


def full_report():
    secant = dict.fromkeys(("coordinate", "row", "tensor", "global"), 3.21 * D)
    r_squared = {"coordinate": 1.0, "row": 0.61, "tensor": 0.33, "global": 0.0}
    return trained_gpt2(noise=NOISE, secant=secant, r_squared=r_squared)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table_shows_every_number_at_every_width(width):
    text = plain(full_report(), width)
    lines = text.splitlines()
    for number in (*NUMBERS, "3.21", "0.0054", "0.0105"):
        assert any(number in line for line in lines), number
    assert max(map(len, lines)) <= width
    assert "scale inf samples (16 microbatches, 4,096 samples)" in words(text)
    assert "not converged" in text


def test_rows_run_from_fine_to_coarse_and_what_is_missing_is_a_dash():
    rows = [line.split() for line in plain(full_report(), 160).splitlines()]
    rows = {row[0]: row for row in rows if row and row[0] in full_report().smoothness}
    assert list(rows) == ["coordinate", "row", "tensor", "global"]
    assert rows["tensor"][-1] == "-"  # no noise for it


def test_one_table_is_split_in_two_where_it_does_not_fit():
    for width, num_tables in ((80, 2), (100, 1)):
        lines = plain(trained_gpt2(), width).splitlines()
        assert sum(line.startswith("partition") for line in lines) == num_tables


def test_printed_text_is_plain_and_as_wide_as_a_page():
    text = str(full_report())
    assert text == "\n".join(line.rstrip() for line in plain(full_report(), 100).splitlines())
    text.encode("latin-1")  # a redirected stdout may know no more
    assert "\x1b" not in text


def test_coordinates_other_than_the_parameters_are_named():
    report = make_report(settings={"coordinates": "Rotation(scope='global', seed=0)"})
    assert "in the coordinates of Rotation(scope='global', seed=0)" in str(report)
    assert "in the coordinates of the parameters" in str(make_report())


def test_names_that_look_like_markup_are_shown_as_they_are():
    name = "[bold]a.*:smile:"
    report = make_report(
        SMOOTHNESS | {name: block(2, 1e-3, 1e-3)}, DUAL_NORM | {name: 4.0}, lambda_max=math.nan
    )
    assert name in str(report)
    assert name in plain(report.compare(report, ("[red]", "b")), 120)


def test_repr_fits_on_a_line():
    assert len(repr(full_report())) < 150


def test_comparison_tells_apart_what_does_not_overlap():
    first = trained_gpt2()
    dual_norm = first.dual_norm | {"coordinate": 2 * first.dual_norm["coordinate"]}
    tensor = block(28, 40 * D, 50 * D, 60 * D)
    second = trained_gpt2(
        loss=0.75,
        one_one_norm=2 * 25.2 * D,
        lambda_max=35.9,
        dual_norm=dual_norm,
        smoothness=first.smoothness | {"tensor": tensor},
    )
    for width in (80, 100):
        text = plain(first.compare(second, ("step 10", "step 900")), width)
        rows = {line[:24].split("  ")[0].strip(): line.split() for line in text.splitlines()}
        assert rows["loss"][-2:] == ["0.5", "-"]
        assert rows["lambda_max"][-2:] == ["1.01", "no"]
        assert rows["(1,1)-norm/d"][-2:] == ["2", "yes"]
        assert rows["N(coordinate)/d"][-2:] == ["1", "no"]
        assert rows["N(tensor)/d"][-2:] == ["1.77", "yes"]  # sqrt(40 50 / (24.9 25.5))
        assert rows["advantage of coordinate"][-2:] == ["4", "yes"]
        assert "advantage of global" not in rows
        assert "step 900 over step 10" in text
        assert "Not converged in step 10: row." in text
        assert "parameters differ" not in text


def test_one_one_norms_are_told_apart_beyond_two_standard_errors_of_their_difference():
    first = make_report()  # 0.75 +- 0.075 per parameter
    for factor, told in ((1.32, "no"), (1.34, "yes")):  # 2 sqrt(1 + f^2) / 10 = f - 1 at 1.333
        text = plain(first.compare(make_report(one_one_norm=6.0 * factor)), 100)
        (line,) = (line for line in text.splitlines() if line.startswith("(1,1)-norm"))
        assert line.split()[-1] == told


def test_comparison_is_of_common_partitions_and_says_when_sizes_differ():
    text = plain(make_report().compare(trained_gpt2(), ("a", "b")), 100)
    assert "N(tensor)/d" in text
    assert "N(row)/d" not in text
    assert "a has 8, b 370,944" in text


def test_noise_of_two_batches_has_no_error_and_no_nan():
    noise = Noise(2, 8.0, 9.05, math.nan, 216.0, {"coordinate": 1.0})
    text = str(make_report(noise=noise))
    assert "trace 9.05 (error unknown)" in text
    assert "nan %" not in text
