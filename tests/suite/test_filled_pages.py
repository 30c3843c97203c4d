"""Pages say what results say: tables and figures are made of them, and what they name is there."""

import math
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lightning_linf import quantities

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SCRIPTS = DOCS / "scripts"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="pages are not in the wheel")
OURS = ("estimates.md", "caveats.md", "theory.md")


@pytest.fixture
def load(monkeypatch):
    """Import scripts, and forget them and what they import from benchmarks/ afterwards."""
    monkeypatch.syspath_prepend(SCRIPTS)
    known = set(sys.modules)
    yield import_module
    files = [*SCRIPTS.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    for name in {file.stem for file in files} & (set(sys.modules) - known):
        del sys.modules[name]


@pytest.fixture
def fill(load):
    return load("fill_pages")


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def test_every_place_says_what_the_results_say(fill):
    pages = list(fill.pages())
    assert DOCS / "estimates.md" in pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert fill.filled(text) == text, f"run python docs/scripts/fill_pages.py ({page.name})"


def test_every_place_is_used_and_unknown_ones_are_refused(fill):
    used = {name for page in fill.pages() for name in fill.names(page.read_text("utf-8"))}
    assert used == set(fill.PLACES)
    assert len(used) == sum(len(kind.PLACES) for kind in fill.KINDS)  # no name twice
    with pytest.raises(ValueError, match="got 'nothing'"):
        fill.filled("a <!-- made: nothing --><!-- end -->")


def test_a_place_within_a_line_stays_there_and_a_table_stands_alone(fill):
    made = {"one": lambda: "1", "two": lambda: "| a |\n| --- |"}
    text = "of <!-- made: one -->0<!-- end -->\n\n<!-- made: two -->\n\n<!-- end -->\n"
    filled = fill.filled(text, made)
    assert filled == (
        "of <!-- made: one -->1<!-- end -->\n\n"
        "<!-- made: two -->\n\n| a |\n| --- |\n\n<!-- end -->\n"
    )
    assert fill.filled(filled, made) == filled


def test_no_line_of_prose_begins_with_a_place(fill):
    assert fill.lines_cut_short("a\n<!-- made: one -->1<!-- end --> b")
    for page in fill.pages():
        assert fill.lines_cut_short(page.read_text(encoding="utf-8")) == [], page.name


def test_a_package_that_failed_is_said_to_have(load):
    made = load("made_of_rivals")
    row, base = made.Row("a", "a 1.0", failure="not installed"), made.Row("b", "b", 2.0)
    assert made.over(row, base) == "failed: not installed"
    assert made.over(base, base) == "1.00"


def test_what_the_page_of_the_theory_says_in_words_is_what_came_out(load):
    """If one of these fails after new trainings, rewrite the sentence in docs/theory.md."""
    made = load("made_of_trainings")
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
    prediction = load("made_of_prediction").prediction()
    assert "The goal is missed" in prediction
    assert "no better than" in prediction


def test_what_other_pages_say_in_words_of_trainings_is_what_came_out(load):
    """If one fails after new trainings, rewrite README, choose.md, faq.md or change_geometry.md."""
    shown, made = load("made_of_trainings").shown, load("made_of_prediction")
    # "only AdaSGD and SGD are shown to end at higher losses than Adam", "no optimizer on" the GPT-2
    assert {name for name, words in shown("ResNet-18").items() if words == "Above"} == {
        "AdaSGD",
        "SGD",
    }
    assert set(shown("GPT-2").values()) == {"Not told apart"}
    # "Muon ... ended lowest in all ten tasks in which it was run"
    assert "| Muon | 10 | 10 |" in made.lowest_losses()
    # "they advised none on the testing half, and two on the choosing half, both wrong"
    assert made.advice("recommend(0.9)") == ["2 of 18", "0", "0 of 18", "0"]


def test_what_pages_say_of_more_products_is_what_came_out(load):
    budgets, lines = load("read_results").brackets()
    of_adam = dict(zip(budgets, lines, strict=False))
    # "64 products in place of 32 did not (... with both)"
    assert of_adam[32] == of_adam[64]
    # "the second 32 brought the ends of Λ nearer", of some 1,000 parameters
    ratios = {
        (x.network, x.partition, x.budget): x.ratio
        for x in load("read_results").adaptive_smoothness()
    }
    for (network, partition, budget), ratio in ratios.items():
        assert ratio >= ratios[network, partition, 64] or budget == 64


def test_what_pages_say_of_predicting_one_step_is_what_came_out(load):
    read = load("read_results")
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
