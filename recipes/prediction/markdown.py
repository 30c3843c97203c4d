"""Paragraphs and tables of a page."""

import textwrap
from collections.abc import Iterator, Sequence

_WIDTH = 110


def paragraph(text: str) -> Iterator[str]:
    """Write a paragraph in lines, after an empty one."""
    yield from ("", *textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write a table after an empty line."""
    yield ""
    for row in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
