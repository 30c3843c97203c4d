"""The report of runs: what it reads, its words, and the page in a browser."""

import html
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from support.chromium import TIMEOUT_SECONDS, chromium, needs_chromium
from support.reports import DUAL_NORM, SMOOTHNESS, block, make_report
from support.short_run import IGNORED_WARNINGS, train, train_into

from lightning_linf import quantities, record
from lightning_linf.cli import main
from lightning_linf.html.page import make_page
from lightning_linf.html.script import bundle
from lightning_linf.panels.files import STATIC
from lightning_linf.report.text import describe
from lightning_linf.runs.load import Run, RunError, load
from lightning_linf.runs.series import Points

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of event files and one of CSV, and their monitors."""
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    folder = tmp_path_factory.mktemp("runs")
    _, first = train_into(folder, "events")
    (folder / "events" / record.FILE_NAME).unlink()
    _, second = train([CSVLogger(folder, name="csv", version="one")], seed=1)
    return folder, {"events": first, "csv/one": second}


@pytest.mark.slow
def test_event_files_and_jsonl_give_the_same(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    train_into(tmp_path, "a")
    (from_file,) = load([tmp_path])
    (tmp_path / "a" / record.FILE_NAME).unlink()
    (from_events,) = load([tmp_path])
    assert from_file.name == from_events.name == "a"
    assert from_file.notes == from_events.notes == []
    assert from_file.scalars.keys() == from_events.scalars.keys()
    for tag, points in from_file.scalars.items():
        others = [*from_events.scalars[tag]]
        np.testing.assert_allclose([*points], others, rtol=1e-6, equal_nan=True)
    assert from_file.tables.keys() == from_events.tables.keys()
    for tag, table in from_file.tables.items():
        other = from_events.tables[tag]
        assert (table.metadata, table.steps) == (other.metadata, other.steps)
        np.testing.assert_allclose(table.values, other.values, rtol=1e-6, equal_nan=True)


def test_runs_are_found_below_the_folders_and_named_by_what_tells_them_apart(trained):
    folder, _ = trained
    assert [run.name for run in load([folder])] == ["csv/one", "events"]
    assert [run.name for run in load([folder / "events"])] == ["events"]
    assert [run.name for run in load([folder / "events", folder / "csv" / "one"])] == [
        "csv/one",
        "events",
    ]
    assert len(load([folder, folder])) == 2  # each once


def texts(page):
    """Give the text of a page's paragraphs and cells, in their order."""
    body = page.partition('<div id="panels">')[0].partition("<h1>")[2]
    return [html.unescape(text) for text in re.findall(r"<(?:p|th|td)(?: [^>]*)?>([^<]*)<", body)]


def test_page_holds_the_report_of_the_last_measurement(trained):
    folder, monitors = trained
    for run in load([folder]):
        monitor = monitors[run.name][2]
        text = describe(monitor.last_report)
        assert run.report == text  # also from event files, to the digit
        assert run.report_step == monitor.history[-1]["step"]
        page = make_page([run])
        shown = texts(page)
        at = shown.index(f"At step {run.report_step + 1:,}, the last whole measurement.")
        assert shown[at + 1 :] == [
            *text.header,
            *text.headings,
            *(cell for row in text.rows for cell in row),
            *text.legend,
            text.verdict,
            text.shares,
        ]


def test_a_run_without_smoothness_has_no_verdict(tmp_path):
    run = Run("a", scalars={quantities.DENSITY.tag: Points([(1, 0.5)])})
    assert "No verdict: its records hold no report of its smoothness" in make_page([run])


NAN = float("nan")


@pytest.mark.parametrize(
    ("scalars", "own", "tag", "since"),
    [
        ({}, {"train_loss": [(0, 2.0), (1, NAN)], "lr": [(0, NAN)]}, "train_loss", "2"),
        ({}, {"train_loss": [(0, 2.0), (1299, float("inf"))]}, "train_loss", "1,300"),
        ({}, {"a_loss": [(0, 2.0), (3, NAN)], "b_loss": [(0, 2.0), (2, NAN)]}, "b_loss", "3"),
        ({quantities.PROBE_LOSS.tag: [(0, NAN)]}, {}, quantities.PROBE_LOSS.tag, "1"),
    ],
)
def test_the_words_of_a_lost_run_begin_with_its_loss(scalars, own, tag, since):
    text = describe(make_report())
    scalars, own = ({tag: Points(each) for tag, each in part.items()} for part in (scalars, own))
    run = Run("a", scalars=scalars, own=own, report=text, report_step=5)
    first, *others = texts(make_page([run]))[1:]  # after who made it
    assert first == (
        f"{tag} is not a finite number since step {since}, so there is no verdict. What is "
        "measured is of step 6."
    )
    assert text.header[0] in others
    assert text.verdict not in others
    assert text.shares not in others


def test_a_lost_run_without_a_report_says_so_alone():
    run = Run("a", own={"train_loss": Points([(0, NAN)])})
    page = make_page([run])
    assert texts(page)[1:] == [
        "train_loss is not a finite number since step 1, so there is no verdict."
    ]


def test_a_loss_that_is_finite_again_loses_no_run():
    own = {"train_loss": Points([(0, 2.0), (1, NAN), (2, 3.0)])}
    page = make_page([Run("a", own=own, report=describe(make_report()), report_step=5)])
    assert "not a finite number" not in " ".join(texts(page))


def test_command_says_which_runs_are_lost(tmp_path, capsys):
    write_lines(tmp_path / "run", {"scalars": {quantities.PROBE_LOSS.tag: "NaN"}})
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "run"), "-o", str(output)]) == 0
    (note,) = capsys.readouterr().out.splitlines()[1:]
    assert note == (
        "Note: run: geometry/probe_loss is not a finite number since step 3, so there is no "
        "verdict."
    )


@pytest.mark.slow
@needs_chromium
def test_words_and_card_of_a_lost_run_say_the_same(tmp_path):
    scalars = {
        end.of("coordinate"): Points([(5, 1.5)])
        for end in (quantities.ADVANTAGE_LOWER, quantities.ADVANTAGE_UPPER)
    }
    own = {"train_loss": Points([(5, 2.0), (1299, NAN)])}
    run = Run("a", scalars=scalars, own=own, report=describe(make_report()), report_step=5)
    path = tmp_path / "report.html"
    path.write_text(make_page([run]), encoding="utf-8")
    with chromium(tmp_path) as page:
        page.open(path.as_uri())
        card = page.wait("document.querySelector('.failed .answer')?.innerText")
        assert card == page.run("document.querySelector('.words .failure').innerText")


def test_records_of_a_version_without_reports_say_so(tmp_path):
    write_lines(tmp_path)
    (run,) = load([tmp_path])
    assert run.report is None
    assert run.notes == []
    assert "an earlier version of lightning_linf kept no reports" in make_page([run])


class Addresses(HTMLParser):
    """Collect what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset")]


def test_page_is_one_file_and_names_cannot_break_it(trained):
    folder, _ = trained
    run = load([folder])[0]
    run.name = "<!--<script></script><b>&\u2028"
    page = make_page([run])
    parser = Addresses()
    parser.feed(page)
    assert parser.found == []
    assert "default-src 'none'" in page
    assert re.search(r'class="scroll" tabindex="0" role="region" aria-label="[^"]+: table"', page)
    assert "<b>" not in page.partition("<body")[2].partition("<script")[0]
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1]
    assert "<" not in embedded
    assert json.loads(embedded)["runs"]["runs"][0]["name"] == run.name


def test_records_of_other_parameters_are_left_out_with_a_note(tmp_path):
    for step, names in ((1, ["a"]), (2, ["a", "b"]), (3, ["a", "b"])):
        columns = {"density": [float(step)] * len(names)}
        one = record.Record(step, "geometry/heterogeneity_per_tensor", {}, names, columns)
        record.append(tmp_path / record.FILE_NAME, one)
    (run,) = load([tmp_path])
    assert run.tables["geometry/heterogeneity_per_tensor"].steps == [2, 3]
    tag = "geometry/heterogeneity_per_tensor"
    assert run.notes == [f"{tmp_path.name}: {tag}: 1 records of other parameters left out"]


def test_event_files_of_other_parameters_give_what_the_tab_gives(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from support.geometry_tab import TAG, other_parameters

    other_parameters(tmp_path)
    (run,) = load([tmp_path])
    assert run.tables[TAG].metadata.tensors == ["c", "d", "e"]
    assert run.tables[TAG].values[:, :, 0].tolist() == [[5.0, 6.0, 7.0]]
    assert run.notes == [f"{tmp_path.name}: {TAG}: 2 records of other parameters left out"]


def write_lines(folder, *changes):
    """Write a whole measurement, and after it lines that differ from it by ``changes``."""
    brackets = [quantities.OPERATOR_NORM_LOWER, quantities.OPERATOR_NORM_UPPER]
    brackets += [quantities.ADVANTAGE_LOWER, quantities.ADVANTAGE_UPPER]
    line = {
        "step": 1,
        "schema": 1,
        "tag": "geometry/heterogeneity_per_tensor",
        "scalars": dict.fromkeys(
            [
                *(
                    quantities.LAMBDA_MAX.tag,
                    quantities.LAMBDA_MAX_ERROR.tag,
                    quantities.ONE_ONE_NORM_PER_PARAM.tag,
                ),
                *(end.of(name) for end in brackets for name in ("coordinate", "row")),
            ],
            1.5,
        ),
        "tensors": ["a", "b"],
        "columns": {"density": [1.0, 2.0]},
        "whole": {"density": 3.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line, *({**line, "step": 2, **change} for change in changes)]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / record.FILE_NAME).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"step": float("inf")},
        {"columns": {"density": [1.0, [2.0]]}},
        {"columns": {"log10_quantiles": [[1.0, 2.0], [3.0]]}},
        {"columns": {"log10_quantiles": [[1.0, 2.0], [3.0, 4.0]]}},  # of other levels
        {"columns": {"density": [[], []]}},
        {"whole": {"density": [1.0, 2.0]}},
        {"tensors": [], "columns": {"density": []}},
        {"tensors": "ab", "columns": 3},
    ],
)
def test_a_malformed_record_is_left_out_with_a_note(tmp_path, capsys, change):
    write_lines(tmp_path / "run", change)
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "run"), "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert said.count("Note: run: ") == 1
    (run,) = load([tmp_path / "run"])
    assert run.tables["geometry/heterogeneity_per_tensor"].steps == [1]


def written(step, name="row", **changes):
    """Make a record of a small report, with changes."""
    made = make_report(SMOOTHNESS | {name: block(4, 5, 6)}, DUAL_NORM | {name: 2.0})
    data = {**made.to_dict(), **changes}
    tag, scalars = "geometry/smoothness_per_tensor", {quantities.LAMBDA_MAX.tag: 1.25}
    return record.Record(step, tag, scalars, ["a"], {"density": [1.0]}, report=data)


def write_reports(folder, kind, *records):
    """Write records into event files, or into `geometry.jsonl`."""
    if kind == "events":
        pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
        from support.geometry_tab import write

        write(folder, *records)
    for one in records if kind == "jsonl" else ():
        record.append(folder / record.FILE_NAME, one)


BROKEN = {
    "no_number": {"loss": "small"},
    "later": {"schema": 99},
    "huge": {"num_params": 10**400},
    "zero": {"num_params": 0},
    "none": {"smoothness": None},
}


@pytest.mark.parametrize("kind", ["jsonl", "events"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_report_that_cannot_be_read_gives_its_place_to_the_one_before(tmp_path, kind, broken):
    folder = tmp_path / "run"
    write_reports(folder, kind, written(1), written(2), written(3, **BROKEN[broken]))
    (run,) = load([tmp_path])
    assert run.report_step == 2
    assert run.report.rows[0][0] == "coordinate"
    (note,) = run.notes
    assert note.startswith(
        "run: 1 broken report left out, the last at step 3: GeometryReport: expected"
    )
    assert run.scalars or kind == "events"
    assert run.tables["geometry/smoothness_per_tensor"].steps == [1, 2, 3]


def test_reports_of_a_monitor_with_a_name_are_not_those_of_the_run(tmp_path):
    named = replace(written(5), tag="geometry/smoothness_per_tensor/validation")
    for kind in ("jsonl", "events"):
        write_reports(tmp_path / kind, kind, written(1), named)
    assert [run.report_step for run in load([tmp_path])] == [1, 1]
    assert [run.notes for run in load([tmp_path])] == [[], []]


def test_names_of_partitions_cannot_break_the_page(tmp_path):
    name = "<script>alert(1)</script>&\u2028[b]"
    write_reports(tmp_path / "run", "jsonl", written(1, name))
    (run,) = load([tmp_path])
    page = make_page([run])
    assert "<script>alert" not in page
    assert html.escape(name) in page
    assert name in texts(page)


def test_names_that_are_no_text_are_written_in_ascii(tmp_path):
    try:
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    columns = {"density": [1.0]}
    lone = record.Record(1, "geometry/\ud800", {}, ["\ud800"], columns)
    (folder / record.FILE_NAME).write_text(json.dumps(json.loads(lone.to_line())) + "\n{\n")
    output = tmp_path / "report.html"
    run = [
        sys.executable,
        "-c",
        "import sys; from lightning_linf.cli import main; sys.exit(main())",
    ]
    command = [*run, "report", str(folder), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr
    assert b"Note: bad\\xff: geometry.jsonl: skipped 1 line" in done.stdout
    assert "<h1>Geometry of bad\\xff</h1>" in output.read_text(encoding="utf-8")


def test_a_run_and_one_below_it_have_two_names(tmp_path):
    write_lines(tmp_path / "a")
    write_lines(tmp_path / "a" / "a")
    assert [run.name for run in load([tmp_path / "a"])] == ["a", "a/a"]
    assert [run.name for run in load([tmp_path])] == ["a", "a/a"]


def test_a_run_that_cannot_be_read_keeps_its_notes(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / record.FILE_NAME).write_text("{\n{\n")
    note = "bad: geometry.jsonl: skipped 2 lines that cannot be read (line 1)"
    with pytest.raises(RunError, match=re.escape(f" {note}.")):
        load([tmp_path])
    write_lines(tmp_path / "good")
    assert [run.notes for run in load([tmp_path])] == [[note], []]


def test_without_tensorboard_event_files_are_noted_and_the_rest_is_read(tmp_path, monkeypatch):
    write_lines(tmp_path / "good")
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "events.out.tfevents.1.x.1").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.tensorflow_stub.pywrap_tensorflow", None)
    events, good = load([tmp_path])
    assert good.scalars
    (note,) = events.notes
    assert "pip install 'lightning-linf[tensorboard]'" in note
    with pytest.raises(RunError, match="pip install"):
        load([tmp_path / "events"])


@pytest.mark.parametrize("make", [False, True])
def test_folders_without_data_are_refused(tmp_path, make):
    folder = tmp_path / "runs"
    if make:
        folder.mkdir()
    with pytest.raises(RunError, match="got none" if make else "to be a folder"):
        load([folder])


def test_command_writes_the_report(trained, tmp_path, capsys):
    folder, _ = trained
    output = tmp_path / "report.html"
    assert main(["report", str(folder), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"Report of 2 runs: {output}\n"
    assert "<h1>Geometry of 2 runs</h1>" in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("runs", "output", "message"),
    [
        ("nothing", "report.html", "error: report: expected RUN_DIR to be a folder"),
        (".", "report.html", "error: report: expected geometry data in"),
        (".", ".", "error: report: expected --output to be a file"),
        (".", "no/report.html", "error: report: expected --output to be a file"),
    ],
)
def test_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, runs, output, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", runs, "-o", output]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_bundle_holds_each_module_once_and_refuses_other_forms(tmp_path):
    script = bundle(STATIC / "panels" / "report.js")
    assert script.count("const module_dom = ") == 1
    assert script.index("const module_dom") < script.index("const module_chart")
    (tmp_path / "a.js").write_text('export * from "./b.js";\n')
    with pytest.raises(ValueError, match=r"a\.js has an import or export of another form"):
        bundle(tmp_path / "a.js")


@pytest.mark.slow
@needs_chromium
def test_report_draws_whatever_a_run_is_called_and_in_a_frame_of_another_origin(tmp_path):
    write_lines(tmp_path / "run")
    (run,) = load([tmp_path])
    run.name = "<!--<script></script>"
    (tmp_path / "report.html").write_text(make_page([run]), encoding="utf-8")
    frame = tmp_path / "frame.html"  # no file shares its origin with another
    frame.write_text('<iframe src="report.html" width="1200" height="900"></iframe>')
    with chromium(tmp_path) as page:
        page.open((tmp_path / "report.html").as_uri())
        page.wait("document.querySelectorAll('.panel canvas').length >= 4")
        assert page.run("document.querySelector('article.verdict h3').innerText") == run.name
        page.open(frame.as_uri())
        page.wait("document.querySelector('iframe')")
        end = time.monotonic() + TIMEOUT_SECONDS
        while str(page.send("DOM.getDocument", depth=-1, pierce=True)).count("'CANVAS'") < 4:
            assert time.monotonic() < end, page.complaints
            time.sleep(0.1)
        assert page.complaints == []


@pytest.mark.slow
@needs_chromium
def test_report_draws_every_panel_and_asks_nobody(trained, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", str(trained[0]), "-o", str(output)]) == 0
    with chromium(tmp_path) as page:
        page.open(output.as_uri())
        page.wait("document.querySelectorAll('.panel canvas').length >= 5")
        cards = page.wait(
            "[...document.querySelectorAll('article.verdict')].map((c) => c.innerText)"
        )
        for card, run in zip(cards, load([trained[0]]), strict=True):
            assert run.name in card
            last = [*run.scalars[quantities.ADVANTAGE_LOWER.of("coordinate")]][-1]
            assert f"at step {last[0] + 1}" in card
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("file:")] == []
