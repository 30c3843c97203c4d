"""What the tab reads over its routes, without a browser and without a server process."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.reports import make_report
from support.short_run import IGNORED_WARNINGS, train_into

pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
from support.geometry_tab import TAG, Plugin, entry, other_parameters, write, write_event
from torch.utils.tensorboard import SummaryWriter

from lightning_linf import quantities
from lightning_linf.panels.files import STATIC
from lightning_linf.panels.table import SHOWN_REPORT, lay_out
from lightning_linf.record import SCHEMA_VERSION
from lightning_linf.report.text import describe
from lightning_linf.tensorboard.plugin import source
from lightning_linf.tensorboard.plugin.loader import GeometryLoader
from lightning_linf.tensorboard.writer import write_record

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Event files of a real training, and its monitors."""
    folder = tmp_path_factory.mktemp("runs")
    _, monitors = train_into(folder, "a")
    writer = SummaryWriter(str(folder / "other"))
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    return folder, monitors


def test_routes_give_what_the_monitors_measured(trained):
    folder, (heterogeneity, noise, smoothness) = trained
    plugin = Plugin(folder)
    status, listed = plugin.request("/runs")
    assert status == 200
    assert listed["notes"] == []
    (run,) = listed["runs"]  # without the one that has no geometry data
    assert run["name"] == "a"
    assert set(run["tables"]) == {m.record_tag for m in (heterogeneity, noise, smoothness)}
    assert (
        listed["layouts"][run["tables"][TAG]]["tensors"] == heterogeneity.history[0]["tensor_names"]
    )

    _, curves = plugin.request("/scalars", run="a")
    assert run["own"] == {"loss": ["train_loss"], "learning_rate": []}
    assert sorted(curves["curves"]) == [*run["scalars"], "train_loss"]
    curve = curves["curves"][quantities.LAMBDA_MAX.tag]
    assert curve["steps"] == [one["step"] + 1 for one in smoothness.history] == [4, 8]
    assert curve["values"] == pytest.approx(
        [one["lambda_max"] for one in smoothness.history], rel=1e-5
    )

    assert 0 < curve["seconds"][0] < curve["seconds"][1] < 600
    assert curve["not_finite_since"] is None

    _, layers = plugin.request("/layers", run="a", tag=TAG, column="gini")
    assert layers["steps"] == [2, 4, 6, 8]  # counted from 1, as every_n_steps=2 counts
    assert layers["note"] is None
    measured = [one["per_tensor"]["gini"].tolist() for one in heterogeneity.history]
    np.testing.assert_allclose(layers["values"], measured, rtol=1e-5)

    _, report = plugin.request("/report", run="a")
    assert run["report"]
    assert report == {"step": 8, **vars(describe(smoothness.last_report))}

    rows = len(heterogeneity.history[0]["tensor_names"])
    _, fan = plugin.request("/fan", run="a", tag=TAG, column="log10_quantiles", row=rows)
    medians = [row[3] for row in fan["values"]]
    expected = [one["median_log10_grad"] for one in heterogeneity.history]
    assert medians == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("route", "query", "status", "error"),
    [
        ("/scalars", {"run": "none"}, 404, "no such data"),
        ("/scalars", {"run": "../a"}, 404, "no such data"),
        ("/scalars", {}, 400, "expected an argument `run`"),
        ("/report", {"run": "none"}, 404, "no such data"),
        ("/report", {"run": "other"}, 404, "no such data"),
        ("/report", {}, 400, "expected an argument `run`"),
        ("/layers", {"run": "a", "tag": "loss", "column": "gini"}, 404, "no such data"),
        ("/layers", {"run": "a", "tag": TAG, "column": "none"}, 404, "no such data"),
        ("/layers", {"run": "a", "tag": TAG}, 400, "expected an argument `column`"),
        ("/layers", {"run": "a", "tag": TAG, "column": "log10_quantiles"}, 400, "single numbers"),
        ("/fan", {"run": "a", "tag": TAG, "column": "gini", "row": "99"}, 404, "no such data"),
        ("/fan", {"run": "a", "tag": TAG, "column": "gini", "row": "-1"}, 404, "no such data"),
        ("/fan", {"run": "a", "tag": TAG, "column": "gini", "row": "x"}, 400, "'x'"),
    ],
)
def test_wrong_arguments_are_refused_in_words(trained, route, query, status, error):
    got, content = Plugin(trained[0]).request(route, **query)
    assert got == status
    assert error in content["error"]


def test_only_get_is_answered(trained):
    assert Plugin(trained[0]).request("/runs", method="POST")[0] == 405


def test_static_files_are_those_of_the_folder_and_no_others(tmp_path):
    plugin = Plugin(tmp_path)
    assert plugin.plugin.frontend_metadata().es_module_path == "/static/panels/index.js"
    for name in (
        "panels/index.js",
        "drawing/chart.js",
        "style.css",
        "vendor/uPlot.esm.js",
        "vendor/LICENSE.txt",
    ):
        assert plugin.request(f"/static/{name}") == (200, (STATIC / name).read_bytes())
    for name in (
        "",
        "nothing.js",
        "../plugin.py",
        "vendor/../../plugin.py",
        "..%2fplugin.py",
        "%2e%2e/plugin.py",
        "/etc/passwd",
        "vendor",
    ):
        assert plugin.request(f"/static/{name}")[0] == 404, name


def test_records_of_a_later_schema_and_broken_ones_are_noted(tmp_path):
    good = json.dumps({"schema": 1, **lay_out(entry(0, [1.0, 2.0]))[1].to_json()})
    write(tmp_path / "good", entry(3, [1.0, 2.0]))
    write_event(tmp_path / "later", good.replace('"schema": 1', '"schema": 3').encode(), [[1.0]])
    write_event(tmp_path / "text", b"\xff not JSON", [[1.0]])
    write_event(tmp_path / "empty", b"{}", [[1.0]])
    write_event(tmp_path / "columns", good.replace('"width": 1', '"width": "x"').encode(), [[1.0]])
    write_event(tmp_path / "shape", good.encode(), np.ones((5, 7)))
    write_event(tmp_path / "words", good.encode(), np.array([["a"], ["b"]]))
    plugin = Plugin(tmp_path)
    _, listed = plugin.request("/runs")
    assert [run["name"] for run in listed["runs"]] == ["good", "shape", "words"]
    assert len(listed["notes"]) == 4
    notes = dict(zip(("columns", "empty", "later", "text"), sorted(listed["notes"]), strict=True))
    assert all(note.startswith(f"{run}: {TAG} left out") for run, note in notes.items())
    assert f"schema 3 is newer than {SCHEMA_VERSION}: update lightning_linf" in notes["later"]
    for run in ("shape", "words"):
        _, layers = plugin.request("/layers", run=run, tag=TAG, column="density")
        assert layers["values"] == []
        assert layers["note"] == "1 broken record left out"
    assert plugin.request("/layers", run="good", tag=TAG, column="density")[1]["values"] == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"[" * 100_000, "RecursionError"),
        (b'"levels": [NaN]', "finite numbers"),
        (b'"levels": [Infinity]', "finite numbers"),
        (b'"levels": ["x"]', "finite numbers"),
        (b'"levels": [' + b"9" * 400 + b"]", "OverflowError"),
        (b'"width": ' + b"9" * 40, "`width` from 1 to"),
    ],
)
def test_no_event_can_empty_the_tab(tmp_path, content, error):
    if content.startswith(b'"'):
        good = json.dumps({"schema": 1, **lay_out(entry(0, [1.0, 2.0]))[1].to_json()}).encode()
        field, _, _ = content.partition(b":")
        content = re.sub(field + rb": (\[\]|1)", content, good)
    write(tmp_path / "good", entry(3, [1.0, 2.0]))
    write_event(tmp_path / "bad", content, [[1.0], [2.0]])
    status, listed = Plugin(tmp_path).request("/runs")
    assert status == 200
    assert [run["name"] for run in listed["runs"]] == ["good"]
    (note,) = listed["notes"]
    assert error in note


def smoothness_entry(step, report, tag="geometry/smoothness_per_tensor"):
    return replace(entry(step, [1.0, 2.0]), tag=tag, report=report)


def test_a_report_that_cannot_be_read_gives_its_place_to_the_one_before(tmp_path):
    good = make_report().to_dict()
    broken = {"later": {"schema": 9}, "list": [], "words": good | {"loss": "small"}}
    for run, last in broken.items():
        write(tmp_path / run, smoothness_entry(1, good), smoothness_entry(2, last))
    write(tmp_path / "none", smoothness_entry(1, {"schema": 9}))
    write(tmp_path / "old", smoothness_entry(1, None))
    named = "geometry/smoothness_per_tensor/validation"
    write(tmp_path / "named", smoothness_entry(1, good, named))
    plugin = Plugin(tmp_path)
    _, listed = plugin.request("/runs")
    has_report = {run["name"]: run["report"] for run in listed["runs"]}
    shown = [*broken, "none"]
    assert has_report == {**dict.fromkeys(shown, True), "old": False, "named": False}
    assert listed["notes"] == []
    for run in broken:
        status, report = plugin.request("/report", run=run)
        assert (status, report["step"]) == (200, 2)
        assert report["verdict"] == make_report().verdict
    status, answer = plugin.request("/report", run="none")
    assert status == 400
    assert (
        "none holds no report that is whole (GeometryReport: expected `schema`" in answer["error"]
    )
    assert plugin.request("/report", run="named")[0] == 404


@pytest.mark.parametrize("tensor", [[1.0], "[" * 100_000, "{", ["{}", "{}"], b"\xff"])
def test_no_event_in_a_reports_place_can_stop_the_tab(tmp_path, tensor):
    write(tmp_path / "a", smoothness_entry(1, make_report().to_dict()))
    write_event(tmp_path / "a", b"", tensor, tag=SHOWN_REPORT, step=2)
    plugin = Plugin(tmp_path)
    assert plugin.request("/runs")[1]["notes"] == []
    assert plugin.request("/report", run="a")[1]["step"] == 2


def test_numbers_never_stand_at_names_of_other_parameters(tmp_path):
    other_parameters(tmp_path / "a")
    plugin = Plugin(tmp_path)
    _, listed = plugin.request("/runs")
    (run,) = listed["runs"]
    assert list(run["tables"]) == [TAG]
    assert listed["layouts"][run["tables"][TAG]]["tensors"] == ["c", "d", "e"]
    _, layers = plugin.request("/layers", run="a", tag=TAG, column="density")
    assert (layers["steps"], layers["values"]) == ([4], [[5, 6, 7]])
    left_out = f"a: {TAG}: records of other parameters left out, the last at step "
    assert listed["notes"] == [f"{left_out}1", f"{left_out}2"]


def test_an_event_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a", entry(0, [1.0, 2.0]))
    plugin = Plugin(tmp_path)

    def fail(*args, **kwargs):
        raise TypeError("Unsupported tensor type: 99")

    monkeypatch.setattr(plugin.plugin._source._provider, "read_tensors", fail)
    status, content = plugin.request("/layers", run="a", tag=TAG, column="density")
    assert status == 400
    assert f"a: {TAG}@" in content["error"]
    assert "`lightning-linf report` leaves it out" in content["error"]


def test_whatever_the_reader_raises_the_page_can_say_it(tmp_path, monkeypatch):
    write(tmp_path / "a", entry(0, [1.0, 2.0]))
    plugin = Plugin(tmp_path)

    def fail(*args, **kwargs):
        raise RuntimeError("received message larger than max")

    monkeypatch.setattr(plugin.plugin._source._provider, "read_tensors", fail)
    status, content = plugin.request("/layers", run="a", tag=TAG, column="density")
    assert status == 500
    assert content["error"].endswith("RuntimeError: received message larger than max")


def test_of_a_huge_table_some_steps_are_read_and_the_page_says_so(tmp_path, monkeypatch):
    write(tmp_path / "a", *(entry(step, [1.0, 2.0]) for step in range(9)))
    monkeypatch.setattr(source, "_MAX_BYTES", 4 * 4 * 2)  # four tables of two numbers
    _, layers = Plugin(tmp_path).request("/layers", run="a", tag=TAG, column="density")
    assert len(layers["steps"]) == 4
    assert layers["note"] == "so large a table that at most 4 steps are read"


def test_a_table_is_read_again_only_when_something_was_added(tmp_path, monkeypatch):
    writer = SummaryWriter(str(tmp_path / "a"))
    write_record(writer, entry(0, [1.0, 2.0]))
    writer.flush()
    plugin = Plugin(tmp_path)
    reads = []
    provider = plugin.plugin._source._provider
    read = provider.read_tensors
    monkeypatch.setattr(
        provider, "read_tensors", lambda *args, **kwargs: reads.append(1) or read(*args, **kwargs)
    )
    query = {"run": "a", "tag": TAG, "column": "density"}
    assert plugin.request("/layers", **query) == plugin.request("/layers", **query)
    assert len(reads) == 1
    write_record(writer, entry(1, [3.0, 4.0]))
    writer.close()
    plugin.reload()
    assert plugin.request("/layers", **query)[1]["steps"] == [1, 2]
    assert len(reads) == 2


def test_numbers_that_json_lacks_travel_as_words(tmp_path):
    write(tmp_path / "a", entry(0, [np.nan, -np.inf]))
    _, layers = Plugin(tmp_path).request("/layers", run="a", tag=TAG, column="density")
    assert layers["values"] == [["NaN", "-Infinity"]]


def test_all_records_are_kept_unless_the_user_says_how_many():
    class Flags:
        samples_per_plugin = None

    GeometryLoader().fix_flags(Flags)
    assert Flags.samples_per_plugin == {"geometry": 0}
    Flags.samples_per_plugin = {"geometry": 7, "images": 3}
    GeometryLoader().fix_flags(Flags)
    assert Flags.samples_per_plugin == {"geometry": 7, "images": 3}


def test_plugin_loads_neither_torch_nor_lightning():
    code = (
        "import sys\n"
        "import lightning_linf.tensorboard.plugin\n"
        "from lightning_linf.tensorboard.plugin.loader import GeometryLoader\n"
        "from tensorboard.plugins.base_plugin import TBContext\n"
        "GeometryLoader().load(TBContext()).get_plugin_apps()\n"
        "heavy = {'torch', 'lightning', 'torchmetrics', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_tensorboard_finds_the_plugin_by_its_entry_point():
    from tensorboard.default import get_dynamic_plugins

    assert GeometryLoader in get_dynamic_plugins()
