"""Pages say what results say: tables and figures are made of them, and what they name is there."""

import math
import re
from importlib import import_module
from pathlib import Path

import pytest

from lightning_linf import quantities

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="pages are not in the wheel")
OURS = ("estimates.md", "caveats.md", "theory.md")


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return import_module("write_tables")


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def test_every_place_says_what_the_results_say(tables):
    pages = list(tables.pages())
    assert DOCS / "estimates.md" in pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"run python docs/write_tables.py ({page.name})"


def test_every_place_is_used_and_unknown_ones_are_refused(tables):
    used = {name for page in tables.pages() for name in tables.names(page.read_text("utf-8"))}
    assert used == set(tables.PLACES)
    with pytest.raises(ValueError, match="got 'nothing'"):
        tables.filled("a <!-- made: nothing --><!-- end -->")


def test_a_place_within_a_line_stays_there_and_a_table_stands_alone(tables):
    made = {"one": lambda: "1", "two": lambda: "| a |\n| --- |"}
    text = "of <!-- made: one -->0<!-- end -->\n\n<!-- made: two -->\n\n<!-- end -->\n"
    filled = tables.filled(text, made)
    assert filled == (
        "of <!-- made: one -->1<!-- end -->\n\n"
        "<!-- made: two -->\n\n| a |\n| --- |\n\n<!-- end -->\n"
    )
    assert tables.filled(filled, made) == filled


def test_no_line_of_prose_begins_with_a_place(tables):
    assert tables.lines_cut_short("a\n<!-- made: one -->1<!-- end --> b")
    for page in tables.pages():
        assert tables.lines_cut_short(page.read_text(encoding="utf-8")) == [], page.name


def test_what_the_page_of_the_theory_says_in_words_is_what_came_out(tables):
    """If one of these fails after new trainings, rewrite the sentence in docs/theory.md."""
    made = import_module("made_of_trainings")
    shown = {study: made.shown(study) for study in ("GPT-2", "ResNet-18")}
    # "rotated Adam is told apart from Adam on neither network"
    assert {words["rotated Adam"] for words in shown.values()} == {"Not told apart"}
    # "With five optimizers none of these has a p below 0.05."
    for start in ("H(Phi) where each", "H(Phi) where Adam's", 'The guess "finer'):
        assert min(made.p_values(start)) >= 0.05
    # "A rotated quadratic: held."
    lines = dict(line.removeprefix("- ").split(": ", 1) for line in made.quadratic().splitlines())
    assert all(said.startswith("rises") for name, said in lines.items() if name[:4] == "Adam")
    assert all(said.startswith("stays") for name, said in lines.items() if name[:3] == "SGD")
    # "the rotation took the (1,1)-norm over d from ... to ...", upwards
    for before, after in re.findall(r"([\d.]+) to ([\d.]+)", made.norms_of_rotated_sgd()):
        assert float(after) > 2 * float(before)
    # "Prediction: missed."
    assert "The goal is missed" in made.prediction()
    assert "no better than" in made.prediction()


def test_what_pages_say_of_predicting_one_step_is_what_came_out(tables):
    read = import_module("read_results")
    # "at initialisation, where the curvature along the gradient is negative, it is undefined"
    first = [line for line in read.advantages() if line.step == 0]
    assert all(math.isnan(line.along) for line in first)
    # "ahead on some and behind on others"
    networks = read.reports().values()
    assert any(found["advantage lower/coordinate"] > 1 for found in networks)
    assert any(found["advantage upper/coordinate"] < 1 for found in networks)


@pytest.mark.parametrize("page", OURS)
def test_files_and_tests_that_a_page_names_are_there(page):
    text = text_of(page)
    for name in re.findall(r"`((?:benchmarks|tests|docs|recipes)/[\w./*-]+)`", text):
        assert list(ROOT.glob(name)), name
    for name in re.findall(r"`((?:functional|probe|report|recorder|optim)/\w+\.py)`", text):
        assert (ROOT / "lightning_linf" / name).is_file(), name
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name


@pytest.mark.parametrize("quantity", quantities.ALL, ids=lambda quantity: quantity.name)
def test_every_quantity_is_explained(quantity):
    if quantity.name.endswith(("_seconds", "_overhead")):
        return
    name = re.sub(r"_error$", "", quantity.name).removesuffix("_relative")
    name = re.sub(r"^critical_multiple_(lower|upper)$", "critical_multiple", name)
    assert re.search(rf"`{name}(_relative_error)?`", text_of("estimates.md"))
