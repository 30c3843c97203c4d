"""What a terminal shows of a report."""

import math

import pytest
from support.reports import (
    DUAL_NORM,
    SMOOTHNESS,
    block,
    full_report,
    make_report,
    plain,
    trained_gpt2,
    words,
)

from lightning_linf.report import NoiseReport

NUMBERS = (
    "370,944", "7.8 to 9.9", "25.2 ±8 %", "0.505 to 0.644", "12.7 to 13.6", "<= 33.8", "2,953",
    "24.9 to 25.5", "<= 57", "35.7 to 35.9", "0.14", "0.61", "row *", "72",
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table_shows_every_number_at_every_width(width):
    text = plain(full_report(), width)
    lines = text.splitlines()
    for number in (*NUMBERS, "3.21", "0.0054", "0.0105"):
        assert any(number in line for line in lines), number
    assert max(map(len, lines)) <= width
    scale = "noise scale not known: the mean gradient cannot be told from 0 (16 microbatches"
    assert scale in words(text)
    assert "not converged" in text


def test_rows_run_from_fine_to_coarse_and_what_is_missing_is_a_dash():
    rows = [line.split() for line in plain(full_report(), 160).splitlines()]
    rows = {row[0]: row for row in rows if row and row[0] in full_report().smoothness}
    assert list(rows) == ["coordinate", "row", "tensor", "global"]
    assert rows["tensor"][-1] == "-"  # no noise for it


def test_one_table_is_split_in_two_where_it_does_not_fit():
    for width, num_tables in ((80, 2), (120, 1)):
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


def test_noise_of_two_batches_has_no_error_and_no_nan():
    noise = NoiseReport(2, 8.0, 9.05, math.nan, 216.0, {"coordinate": 1.0})
    text = str(make_report(noise=noise))
    assert "trace 9.05 (error unknown)" in text
    assert "nan %" not in text
