"""Fill in what pages take from results: `python docs/scripts/fill_pages.py`.

A place in a page is `<!-- made: NAME -->...<!-- end -->`, where NAME is that of a function in one
of the `made_of_*.py` beside this file, with spaces. What it gives stands between both, within a
line or on lines of its own. So no table, and no figure of such a place, is typed.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import made_of_bounds
import made_of_costs
import made_of_errors
import made_of_prediction
import made_of_reports
import made_of_rivals
import made_of_steps
import made_of_trainings

DOCS = Path(__file__).resolve().parents[1]
KINDS = (
    made_of_bounds, made_of_errors, made_of_steps, made_of_costs, made_of_rivals,
    made_of_trainings, made_of_prediction, made_of_reports,
)  # fmt: skip
PLACES = {name: made for kind in KINDS for name, made in kind.PLACES.items()}
_PLACE = re.compile(r"<!-- made: ([\w ]+) -->(.*?)<!-- end -->", re.DOTALL)
# Markdown takes a line that begins with a comment for HTML, and ends the paragraph.
_AT_START = re.compile(r" *<!--.*?-->(?=.*\S)")


def pages() -> Iterator[Path]:
    """Give the pages that have places."""
    for page in sorted([DOCS.parent / "README.md", *DOCS.rglob("*.md")]):
        if _PLACE.search(page.read_text(encoding="utf-8")):
            yield page


def names(text: str) -> set[str]:
    """Give the names of the places of a page."""
    return {place[1] for place in _PLACE.finditer(text)}


def filled(text: str, made: Mapping[str, Callable[[], str]] = PLACES) -> str:
    """Give the text of a page with all of its places filled.

    Raises:
        ValueError: If a place has a name that is not known.
    """

    def fill(place: re.Match[str]) -> str:
        name, old = place.groups()
        if name not in made:
            raise ValueError(f"fill_pages: expected one of {sorted(made)}, got {name!r}.")
        new = made[name]()
        between = f"\n\n{new}\n\n" if old.startswith("\n") else new
        return f"<!-- made: {name} -->{between}<!-- end -->"

    return _PLACE.sub(fill, text)


def lines_cut_short(text: str) -> list[str]:
    """Find lines of prose that begin with a place, at which a paragraph would end."""
    return [line for line in text.splitlines() if _AT_START.match(line)]


if __name__ == "__main__":
    for written in pages():
        written.write_text(filled(written.read_text(encoding="utf-8")), encoding="utf-8")
