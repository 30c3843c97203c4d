"""The figures of runs: which are drawn, of which numbers, and whatever the runs hold."""

import math
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from support.short_run import IGNORED_WARNINGS, train_into

pytest.importorskip("matplotlib", reason="needs lightning-linf[figures]")

from lightning_linf import figure_style as style
from lightning_linf import quantities
from lightning_linf.cli import main
from lightning_linf.figures import curves, layers
from lightning_linf.figures.save import save_figures
from lightning_linf.panels.files import STATIC
from lightning_linf.panels.table import lay_out, stack
from lightning_linf.record import Record
from lightning_linf.runs.load import load
from lightning_linf.runs.run import Run

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]
PANELS = ["verdict", "smoothness", "heatmap", "bars", "fan"]
STARTS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}
LEVELS = [float(level) for level in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of real trainings."""
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        train_into(folder, name, seed=seed)
    return folder


def run_of(name="run", values=(1.0, 2.0), tensors=("a", "b"), density=(0.5, 1.0)):
    """Make a run whose scalars all have the same values, at steps 1, 2, ..."""
    per_partition = (
        *(quantities.ADVANTAGE_LOWER, quantities.ADVANTAGE_UPPER),
        *(
            quantities.OPERATOR_NORM_LOWER,
            quantities.OPERATOR_NORM_UPPER,
            quantities.SMOOTHNESS_UPPER,
        ),
    )
    names = [scalar.of(which) for scalar in per_partition for which in ("coordinate", "own")]
    names += [quantities.LAMBDA_MAX.tag, quantities.ONE_ONE_NORM_PER_PARAM.tag]
    rows = []
    for step in range(1, len(values) + 1):
        columns = {"log10_quantiles": [LEVELS] * len(tensors), "density": density}
        array, metadata = lay_out(Record(step, "geometry/a", {}, list(tensors), columns))
        rows.append((step, array))
    points = list(enumerate(values, start=1))
    table, _ = stack(metadata, rows)
    return Run(name, dict.fromkeys(names, points), {"geometry/a": table})


@pytest.mark.parametrize("kind", ["png", "svg", pytest.param("pdf", marks=pytest.mark.slow)])
def test_command_draws_each_panel(folder, tmp_path, capsys, kind):
    output, figures = tmp_path / "report.html", tmp_path / "new" / "figures"
    assert main(["report", str(folder), "-o", str(output), f"--{kind}", str(figures)]) == 0
    files = [figures / f"{panel}.{kind}" for panel in [*PANELS, "losses"]]
    assert capsys.readouterr().out.splitlines()[1:] == [f"Figure: {file}" for file in files]
    assert sorted(figures.iterdir()) == sorted(files)
    for file in files:
        assert file.read_bytes().startswith(STARTS[kind])


def test_text_of_an_svg_file_names_runs_axes_and_units(folder, tmp_path):
    save_figures(load([folder]), {"svg": tmp_path})
    expected = {
        "verdict": ["optimizer step", "× the decrease by SGD's step"],
        "smoothness": ["H(Φ)/d, loss per parameter squared", "Adam (coordinate)", "SGD (global)"],
        "heatmap": ["gradient density ‖g‖₁² / (d ‖g‖₂²)", "body.0.weight", "second"],
        "bars": ["first, step 7", "head.bias"],
        "fan": ["log₁₀|g|", "second, all parameters"],
    }
    for panel, texts in expected.items():
        svg = (tmp_path / f"{panel}.svg").read_text(encoding="utf-8")
        assert [text for text in texts if f">{text}</text>" not in svg] == [], panel


def test_curves_are_the_numbers_of_the_runs(folder):
    runs = load([folder])
    (axes,) = curves.draw_verdict(runs).axes
    drawn = [line.get_xydata() for line in axes.lines[:-1]]  # the last is that of SGD
    ends = (quantities.ADVANTAGE_LOWER, quantities.ADVANTAGE_UPPER)
    expected = [
        *(run.scalars[quantities.STEP_ADVANTAGE.of("coordinate")] for run in runs),
        *(run.scalars[end.of("coordinate")] for run in runs for end in ends),
    ]
    expected = [[(s, v) for s, v in points if v > 0] for points in expected]
    for points, numbers in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(points, list(numbers))
    bounds, _ = curves.draw_smoothness(runs[:1]).axes
    expected = [
        quantities.ONE_ONE_NORM_PER_PARAM.tag,
        quantities.SMOOTHNESS_UPPER.of("row"),
        quantities.SMOOTHNESS_UPPER.of("tensor"),
        quantities.LAMBDA_MAX.tag,
    ]
    for line, tag in zip(bounds.lines, expected, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), list(runs[0].scalars[tag]))


@pytest.mark.parametrize(("open_one", "mark"), [("coordinate", 1), ("global", 1), ("row", 0)])
def test_a_bracket_that_has_not_converged_is_said_to_be(open_one, mark):
    run = run_of()
    run.scalars[quantities.CONVERGED.of(open_one)] = [(1, 1.0), (2, 0.0)]
    for runs, label in (([run], "Adam (coordinate)"), ([run, run_of("other")], "run")):
        (legend,) = curves.draw_verdict(runs).legends
        assert legend.get_texts()[0].get_text() == label + mark * ", not converged"


def test_layers_are_the_numbers_of_the_tables(folder):
    runs = load([folder])
    table = runs[1].tables["geometry/heterogeneity_per_tensor"]
    num_tensors = len(table.metadata.tensors)
    at = table.metadata.slice_of("density").start
    mesh = layers.draw_heatmap(runs).axes[1].collections[0]
    expected = table.values[:, :num_tensors, at]
    np.testing.assert_array_equal(mesh.get_array(), expected.T)
    lengths = [bar.get_width() for bar in layers.draw_bars(runs).axes[1].patches]
    np.testing.assert_array_equal(lengths, expected[-1])
    (median,) = layers.draw_fan(runs).axes[1].lines
    middle = table.metadata.slice_of("log10_quantiles").start + 3
    np.testing.assert_array_equal(median.get_ydata(), table.values[:, -1, middle])


@pytest.mark.parametrize(
    "runs",
    [
        [run_of(values=[1.0])],
        [run_of(values=[0.0, -1.0, math.nan, math.inf])],
        [run_of(values=[1e-30, 1e30])],
        [run_of(values=[2.0, 2.0 + 1e-12])],
        [run_of(density=(math.nan, math.inf))],
        [run_of(density=(-1.0, -2.0)), run_of("other", tensors=("c", "d"))],
        [
            run_of(name, tensors=(name, "b"))
            for name in ("$x_$", "_hidden", "\ud800", r"\frac{", "<&")
        ],
        pytest.param([run_of(str(number)) for number in range(10)], marks=pytest.mark.slow),
        [run_of(tensors=[f"layer.{i}" for i in range(300)], density=[0.5] * 300)],
    ],
    ids=[
        "one step",
        "none",
        "far apart",
        "equal",
        "not finite",
        "negative",
        "names",
        "many",
        "large",
    ],
)
def test_figures_are_drawn_whatever_runs_hold(tmp_path, runs):
    assert len(save_figures(runs, {"svg": tmp_path})) == len(PANELS)


@pytest.mark.parametrize("values", [[1.0], [1.02, 1.3], [0.7, 2.4], [3e-9, 2e5], [1e-3, 1e-3]])
def test_a_log_axis_has_numbers_around_all_values(values):
    (axes,) = curves.draw_verdict([run_of(values=values)]).axes
    ticks = axes.get_yticks()
    assert 2 <= len(ticks) <= 8
    low, high = axes.get_ylim()
    assert low <= min(*values, 1.0) < max(*values, 1.0) * (1 + 1e-9) <= high * (1 + 1e-9)


def test_a_panel_without_data_is_left_out(tmp_path):
    run = run_of()
    run.scalars = {quantities.LAMBDA_MAX.tag: [(1, 1.0)]}
    run.tables.clear()
    assert save_figures([run], {"png": tmp_path}) == [tmp_path / "smoothness.png"]
    assert save_figures([Run("empty")], {"png": tmp_path}) == []


def test_colors_are_those_of_the_page():
    script = (STATIC / "drawing" / "color.js").read_text(encoding="utf-8")
    light = re.search(r"const LIGHT = \[(.*?)\]", script, re.DOTALL)[1]
    assert list(style.PALETTE) == re.findall(r"#\w{6}", light)
    looks = {(look["color"], look["marker"]) for look in map(style.look, range(72))}
    assert len(looks) == 72


def test_without_matplotlib_figures_are_refused_before_anything_is_read(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "lightning_linf.cli.report.find_spec",
        lambda name: None if name == "matplotlib" else find_spec(name),
    )
    output = tmp_path / "report.html"
    for kind in STARTS:
        assert main(["report", "no-run", "-o", str(output), f"--{kind}", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: report: expected matplotlib for --{kind}, got none.")
        assert "pip install 'lightning-linf[figures]'" in said
        assert said.count("\n") == 1
    assert not output.exists()


def test_matplotlib_is_imported_for_figures_only(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import of it fails
    assert main(["report", str(folder), "-o", str(tmp_path / "report.html")]) == 0


@pytest.mark.parametrize(("last", "scale"), [(2e5, "log"), (200.0, "linear")])
def test_losses_of_several_orders_have_a_logarithmic_axis(last, scale):
    runs = [Run("a", own={"train_loss": [(1, 2.0), (2, last), (3, math.nan)]}), Run("b")]
    (axes,) = curves.draw_losses(runs).axes
    assert axes.get_yscale() == scale
