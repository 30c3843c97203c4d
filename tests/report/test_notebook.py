"""What a notebook shows of a report and of a partition, and the tables of pandas."""

import math
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from support.reports import D, favouring_adam, full_report, make_report, trained_gpt2
from torch import nn

from lightning_linf import Partition, measure_geometry
from lightning_linf.probe import progress
from lightning_linf.report.measurement import SpectralSmoothness
from lightning_linf.report.text import describe


class Cells(HTMLParser):
    """All text of a page, and the cells of its table by row; fails on tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.text, self._open = [], [], []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        if tag != "br":
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_a_notebook_shows_the_text_of_the_report():
    report = full_report()
    text, page = describe(report), Cells(report._repr_html_())
    assert page.rows == [text.headings, *text.rows]
    for line in (*text.header, *text.legend, text.verdict, text.shares):
        assert line in page.text


def test_names_are_no_markup_in_a_notebook():
    named = "<img src=x onerror=alert(1)>"
    report = favouring_adam()
    smoothness = {**report.smoothness, named: report.smoothness["tensor"]}
    dual_norm = {**report.dual_norm, named: 1.0}
    page = make_report(smoothness, dual_norm)._repr_html_()
    assert "<img" not in page
    assert any(named in row[0] for row in Cells(page).rows)


def test_pandas_has_the_numbers_of_the_report_by_partition():
    pytest.importorskip("pandas")
    report = full_report()
    table = report.to_pandas()
    assert list(table.index) == ["coordinate", "row", "tensor", "global"]
    assert table.index.name == "partition"
    for name, block in report.smoothness.items():
        row = table.loc[name]
        assert row["operator_norm_lower"] == block.lower / D
        assert row["smoothness_upper"] == block.upper / D
        assert row["advantage_upper"] == report.advantage[name].upper
        assert row["decrease_lower"] == report.decrease[name].lower
        assert row["step_advantage"] == report.step_advantage[name]
        assert row["secant"] == report.secant[name] / D
    assert math.isnan(table.loc["row", "noise"])  # not measured of this one
    assert table["num_blocks"].dtype.kind == "i"


def test_pandas_has_a_row_for_each_parameter_tensor():
    pytest.importorskip("pandas")
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    batches = list(torch.randn(2, 8, 3))
    report = measure_geometry(module, batches, loss=lambda m, x: m(x).square().mean())
    table = report.to_pandas("parameter")
    assert list(table.index) == [name for name, _ in module.named_parameters()]
    assert table["one_one_norm_share"].sum() == pytest.approx(1.0)
    assert list(table["num_params"]) == [p.numel() for p in module.parameters()]


def test_pandas_has_the_geometry_of_muon_where_it_was_measured():
    pytest.importorskip("pandas")
    plain = make_report()
    report = replace(
        plain,
        dual_norm={**plain.dual_norm, "spectral": 2.0},
        curvature={**plain.curvature, "spectral": 1.0},
        spectral=SpectralSmoothness(2, 16.0, 24.0, 0.0, 9),
    )
    row = report.to_pandas().loc["spectral"]
    assert (row["operator_norm_lower"], row["operator_norm_upper"]) == (2.0, 3.0)
    assert math.isnan(row["smoothness_upper"])


def test_pandas_refuses_other_rows_and_says_which_there_are():
    pytest.importorskip("pandas")
    with pytest.raises(ValueError, match='expected `rows` to be "partition" or "parameter"'):
        make_report().to_pandas("layer")


def test_plot_draws_the_brackets_at_their_places_and_writes_any_format():
    pytest.importorskip("matplotlib")
    report = favouring_adam()
    figure = report.plot()
    left, right = figure.axes
    bars = [line for line in left.lines if line.get_linewidth() == 7]
    assert [tuple(bar.get_xdata()) for bar in bars] == [
        (report.smoothness[name].lower / 8, report.smoothness[name].operator_upper / 8)
        for name in ("coordinate", "tensor", "global")
    ]
    ends = [tuple(line.get_xdata()) for line in right.lines if line.get_linewidth() == 7]
    assert ends[0] == (report.advantage["coordinate"].lower, report.advantage["coordinate"].upper)
    assert left.get_yticklabels()[0].get_text() == "coordinate (Adam)"
    for kind, start in (("svg", b"<?xml"), ("pdf", b"%PDF-"), ("png", b"\x89PNG")):
        content = BytesIO()
        figure.savefig(content, format=kind)
        assert content.getvalue().startswith(start)
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows


@pytest.mark.parametrize(
    "report",
    [
        make_report(curvature=dict.fromkeys(("global", "tensor", "coordinate"), -1.0)),
        trained_gpt2(),
        make_report(dual_norm=dict.fromkeys(("global", "tensor", "coordinate"), 0.0)),
    ],
)
def test_plot_leaves_out_what_has_no_place_on_its_axes(report):
    pytest.importorskip("matplotlib")
    figure = report.plot()
    figure.savefig(BytesIO(), format="png")
    drawn = [x for axes in figure.axes for line in axes.lines for x in line.get_xdata()]
    assert all(math.isfinite(x) and x > 0 for x in drawn)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    known = report.step_advantage.values()
    assert len(dots) == sum(math.isfinite(value) and value > 0 for value in known)


def test_a_partition_shows_its_blocks_in_a_notebook_and_in_pandas():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    partition = Partition.of(module, "row")
    page = Cells(partition._repr_html_())
    assert page.rows[0] == ["parameter", "shape", "blocks", "entries per block"]
    assert page.rows[1] == ["0.weight", "(4, 3)", "4", "3"]
    assert any("row: 10 blocks of 21 parameters" in line for line in page.text)
    pytest.importorskip("pandas")
    table = partition.to_pandas()
    assert list(table.index) == partition.names
    assert list(table["num_blocks"]) == [4, 4, 1, 1]
    assert table.loc["1.weight", ["smallest", "largest"]].to_list() == [4, 4]
    shared = Partition.of(module, "module").to_pandas()
    assert list(shared["num_tensors"]) == [2, 2, 2, 2]
    assert list(shared["largest"]) == [16, 16, 5, 5]


def test_progress_shows_the_products_and_leaves_no_line(capsys):
    counted = []
    report = measure_geometry(
        nn.Linear(3, 1),
        list(torch.randn(2, 8, 3)),
        loss=lambda m, x: m(x).square().mean(),
        progress=True,
        on_hvps=counted.append,
    )
    shown = capsys.readouterr().err
    assert "Probing" in shown
    assert sum(counted) == report.num_hvps
    assert shown.endswith("\r")  # the bar is wiped away


def test_a_bar_of_fewer_products_than_there_might_be_ends_full(monkeypatch):
    ends = []

    class Noted(progress.Tqdm):
        """In a notebook, tqdm turns a bar red that ends before its total, and leaves it there."""

        def close(self):
            ends.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(progress, "Tqdm", Noted)
    report = measure_geometry(
        nn.Linear(3, 1),
        list(torch.randn(2, 8, 3)),
        loss=lambda m, x: m(x).square().mean(),
        progress=True,
    )
    assert ends[0] == (report.num_hvps, report.num_hvps)
