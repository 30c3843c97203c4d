"""What a user reads of a measurement is the same wherever it is read."""

import html
import importlib
import json
import sys
from pathlib import Path

import pytest
from support.reports import plain, words
from support.short_run import IGNORED_WARNINGS, train_into

from lightning_linf import record
from lightning_linf.html.page import make_page
from lightning_linf.report.shares import shares_sentence
from lightning_linf.report.text import describe
from lightning_linf.runs.load import load

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one run, and its smoothness monitor."""
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    folder = tmp_path_factory.mktemp("runs")
    return folder, train_into(folder, "a")[1][2]


def in_terminal(folder, monitor):
    return str(monitor.last_report)


def in_page(folder, monitor):
    return html.unescape(make_page(load([folder])).partition('<div id="panels">')[0])


def in_recipe(folder, monitor):
    pytest.importorskip("sklearn", reason="needs lightning-linf[recipes]")
    if not RECIPES.is_dir():
        pytest.skip("recipes are not in the wheel")
    sys.path.insert(0, str(RECIPES))
    try:
        recipe = importlib.import_module("training.summary")
    finally:
        sys.path.remove(str(RECIPES))
    return " ".join(recipe.geometry_sentences(monitor.history, monitor.last_report))


def in_tab(folder, monitor):
    from support.geometry_tab import Plugin

    status, answer = Plugin(folder).request("/report", run="a")
    assert status == 200
    assert answer["verdict_status"] == monitor.last_report.verdict_status
    return f"{answer['verdict']} {answer['shares']}"


def in_json(folder, monitor):
    content = json.loads(monitor.last_report.to_json())
    assert content["verdict_status"] == monitor.last_report.verdict_status
    return f"{content['verdict']} {content['shares']}"


def in_records(folder, monitor):
    *_, last = (folder / "a" / record.FILE_NAME).read_text(encoding="utf-8").splitlines()
    content = json.loads(last)["report"]
    assert content["verdict_status"] == monitor.last_report.verdict_status
    return f"{content['verdict']} {content['shares']}"


@pytest.mark.parametrize("read", [in_terminal, in_page, in_recipe, in_tab, in_json, in_records])
def test_verdict_and_shares_are_the_same_sentences_in(trained, read):
    found = words(read(*trained))  # a terminal breaks lines
    report = trained[1].last_report
    assert report.verdict in found
    assert report.verdict.lower().startswith(report.verdict_status)  # so the page says it, too
    assert shares_sentence(report) in found


def test_header_cells_and_legend_are_the_same_in_terminal_page_and_tab(trained):
    from support.geometry_tab import Plugin

    text = describe(trained[1].last_report)
    answer = Plugin(trained[0]).request("/report", run="a")[1]
    assert {**answer, "step": None} == {**vars(text), "step": None}
    page = in_page(*trained)
    terminal = words(plain(trained[1].last_report, 200))
    for one in (*text.header, *text.headings, *text.legend, *(c for r in text.rows for c in r)):
        assert f">{one}<" in page
        assert one in terminal


@pytest.mark.parametrize("read", [in_terminal, in_page])
def test_coordinates_and_number_of_parameters_are_said_once(trained, read):
    found = words(read(*trained))
    assert found.count("in the coordinates of") == 1
    assert found.count("d = ") == 1
