"""README and the pages of docs/, and what stands in their fences."""

from pathlib import Path

import pytest

markdown_it = pytest.importorskip("markdown_it")  # of the extra dev; an old rich brings none

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
if not (ROOT / "README.md").is_file() or not (ROOT / "docs").is_dir():
    pytest.skip("docs/ is not beside tests/: they are not in the wheel", allow_module_level=True)
MARKDOWN = markdown_it.MarkdownIt("commonmark").enable("table")


def name_of(page):
    """Name a page from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def tokens(page):
    """Read a page as Markdown."""
    return MARKDOWN.parse(page.read_text(encoding="utf-8"))


def fences(page, language):
    """Give (number of its first line, text) of each fenced block of a language."""
    return [
        (token.map[0] + 2, token.content)
        for token in tokens(page)
        if token.type == "fence" and token.info.split(maxsplit=1)[:1] == [language]
    ]
