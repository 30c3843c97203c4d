"""A report as JSON and as a file."""

import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reports import (
    NOISE,
    SMOOTHNESS,
    block,
    favouring_adam,
    full_report,
    make_report,
    plain,
    words,
)

from lightning_linf import quantities
from lightning_linf.report import (
    BlockSmoothness,
    GeometryReport,
    NoiseReport,
    SpectralSmoothness,
)
from lightning_linf.report.scalars import scalars_of

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
    noise = NoiseReport(draw(counts), *(draw(anything) for _ in range(4)), draw(by_name))
    spectral = SpectralSmoothness(draw(counts), *(draw(anything) for _ in range(3)), draw(counts))
    spectral = draw(st.sampled_from([None, spectral]))
    geometries = [*names, *(["spectral"] if spectral else [])]
    return GeometryReport(
        draw(st.integers(1, 2**70)),
        *numbers,
        {name: draw(anything) for name in geometries},
        {name: draw(anything) for name in geometries},
        smoothness,
        draw(by_name),
        draw(st.dictionaries(st.text(), by_name, max_size=2)),
        draw(st.sampled_from([None, noise])),
        draw(st.none() | by_name),
        draw(st.dictionaries(st.text(), scalars, max_size=3)),
        draw(counts),
        draw(anything),
        draw(st.none() | anything),
        draw(st.none() | st.dictionaries(st.sampled_from(names), anything)),
        spectral,
    )


def refuse(word):
    raise AssertionError(f"not JSON: {word}")


def exactly(value):
    """Spell a value so that NaN equals NaN and 0.0 does not equal -0.0."""
    return repr(sorted(vars(value).items()))


@settings(database=None)
@given(report=arbitrary())
def test_json_round_trip_is_exact_and_strict(report):
    text = report.to_json()
    again = GeometryReport.from_json(text)
    assert exactly(again) == exactly(report)
    assert again.to_json() == text
    assert json.loads(text, parse_constant=refuse) == report.to_dict()


@settings(database=None, max_examples=30)
@given(report=arbitrary())
def test_no_numbers_stop_the_tables_and_the_sentences(report):
    assert report.verdict in words(str(report))
    assert plain(report, 80)
    assert report.to_dict()["shares"].startswith("Share of Adam's decrease")


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
        (
            "lost",
            1.0,
            r"have the keys of GeometryReport, got \[\] missing and \['lost'\] unknown. If a later",
        ),
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


def test_report_of_a_version_without_adaptive_smoothness_is_read():
    data = make_report().to_dict()
    for one in data["smoothness"].values():
        del one["adaptive_lower"]
    smoothness = GeometryReport.from_dict(data).smoothness
    assert all(math.isnan(one.adaptive_lower) for one in smoothness.values())
    assert smoothness["tensor"].adaptive_upper == smoothness["tensor"].operator_upper == 8


def test_adaptive_smoothness_is_kept_and_logged_over_d():
    smoothness = SMOOTHNESS | {"tensor": block(2, 6, 8, adaptive_lower=7.0)}
    report = make_report(smoothness)
    assert GeometryReport.from_json(report.to_json()).smoothness["tensor"].adaptive_lower == 7.0
    logged = scalars_of(report)
    assert logged[quantities.ADAPTIVE_LOWER.of("tensor")] == 7.0 / 8
    assert quantities.ADAPTIVE_LOWER.of("global") not in logged


def test_what_is_no_report_is_refused():
    with pytest.raises(ValueError, match="GeometryReport: expected `text` to be JSON, got 'report"):
        GeometryReport.from_json("report.json")
    with pytest.raises(ValueError, match="GeometryReport: expected `data` to be a dict, got list"):
        GeometryReport.from_json("[]")


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


def test_repr_fits_on_a_line():
    assert len(repr(full_report())) < 150
