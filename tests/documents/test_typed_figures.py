"""A measured figure in a page is filled in from a result; the others stand in files that hold them.

`typed_figures.txt` beside this file lists the others, as page | figure | file: definitions,
settings, what tests hold. To fill a figure in, see docs/scripts/fill_pages.py. Whole numbers
without a unit look like counts and are not seen.
"""

import re
from pathlib import Path

import pytest
from support.documents import MARKDOWN, PAGES, ROOT, name_of

# Pages that a script writes, and those of versions.
WRITTEN = {
    "docs/gallery/index.md": "recipes/gallery.py",
    "docs/quantities.md": "docs/scripts/list_quantities.py",
    "docs/results.md": "recipes/paper.py",
    "docs/results/prediction-protocol.md": "recipes/predict.py",
    "docs/results/prediction.md": "recipes/predict.py",
    "docs/scaling.md": "docs/scripts/write_scaling.py",
}
OF_VERSIONS = {"CHANGELOG.md", "docs/releases.md"}
CHECKED = [page for page in PAGES if name_of(page) not in {*WRITTEN, *OF_VERSIONS}]
LISTED = [
    line.split(" | ")
    for line in Path(__file__).with_name("typed_figures.txt").read_text("utf-8").splitlines()
]

PLACE = re.compile(r"<!-- made: .*?<!-- end -->", re.DOTALL)
NO_FIGURE = re.compile(  # formulas, papers, versions
    r"\$\$[^$]+\$\$|\$[^$]+\$|arXiv:[\d.]+|\b(?:torch|Python|Lightning) \d+\.\d+\b|\d+\.\d+\.\d+\w*"
)
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?"
FIGURE = re.compile(
    rf"(?:± ?)?(?<![\w.-]){NUMBER}(?: (?:to|–|of) {NUMBER}| and {NUMBER}(?= ?%))?"
    r"(?: ?%| (?:times|ms|s|seconds|minutes|hours|[KMG]i?B)\b)?"
)


def prose(text):
    """Give what is neither code nor filled in."""
    blocks = [
        " ".join(each.content for each in token.children if each.type == "text")
        for token in MARKDOWN.parse(PLACE.sub("", text))
        if token.type == "inline"
    ]
    return "\n".join(NO_FIGURE.sub("", block) for block in blocks)


def typed(text):
    """Find what looks measured: percentages, ranges, counts of counts, units, and decimals."""
    found = (figure[0] for figure in FIGURE.finditer(prose(text)))
    return {figure for figure in found if not re.fullmatch(r"\d+(?:,\d{3})*", figure)}


def is_in(figure, text):
    """Tell whether a figure is in a text, or each of its numbers; percentages also as shares."""
    ways = [{figure}]
    for number in re.findall(NUMBER, figure):
        plain = number.replace(",", "")
        share = {f"{number} %", f"{number}%", f"{float(plain) / 100:g}"}
        ways.append(share if "%" in figure else {number, plain, number.replace(",", "_")})
    whole, *each = [any(_holds(text, way) for way in found) for found in ways]
    return whole or all(each)


def _holds(text, words):
    return re.search(rf"(?<![\d.]){re.escape(words)}(?!\d|\.\d)", " ".join(text.split()))


@pytest.mark.parametrize("page", CHECKED, ids=name_of)
def test_a_typed_figure_is_listed_and_no_listed_one_is_gone(page):
    listed = {figure for name, figure, _ in LISTED if name == name_of(page)}
    found = typed(page.read_text(encoding="utf-8"))
    assert found - listed == set(), "make it a place of fill_pages.py, or list what holds it"
    assert listed - found == set(), "strike it from typed_figures.txt"


@pytest.mark.parametrize(("page", "figure", "file"), LISTED)
def test_a_listed_figure_is_in_the_file_that_holds_it(page, figure, file):
    assert ROOT / page in CHECKED
    assert is_in(figure, (ROOT / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("figure", "text", "expected"),
    [
        ("12 %", "at 12 % of it", True),
        ("12 %", "share = 0.12", True),
        ("12 %", "112 % or 12.5 % or 0.125", False),
        ("12 %", "12 of them", False),
        ("9 to 12 %", "9 to\n12 %", True),
        ("2 to 1,024", "2 and 1024", True),
        ("2 to 1,024", "2 and 3", False),
    ],
)
def test_a_figure_is_in_a_text_if_all_of_its_numbers_are(figure, text, expected):
    assert is_in(figure, text) == expected


def test_pages_that_are_not_looked_at_have_what_writes_them():
    for name, script in WRITTEN.items():
        assert (ROOT / script).is_file(), name


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("it took 12 % of the time, or 7 and 8 %", {"12 %", "7 and 8 %"}),
        ("between 0.8 and 1.25", {"0.8", "1.25"}),
        (
            "it took 3 to\n5 ms, 1.5 times as long, on 2 of 1,024 ranks",
            {"3 to 5 ms", "1.5 times", "2 of 1,024"},
        ),
        ("± 0.2, `12 %`, $0.5$, torch 2.13, 370,432 parameters of a GPT-2 of 2 layers", {"± 0.2"}),
        ("<!-- made: one -->12 %<!-- end --> of\n\n    print(0.5)\n", set()),
    ],
)
def test_what_looks_measured_is_found(text, figures):
    assert typed(text) == figures
