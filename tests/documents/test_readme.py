"""The README stays a door: short, with the two commands that a newcomer gives."""

import re

from support.documents import ROOT, fences

README = ROOT / "README.md"


def test_it_is_short_and_has_one_picture():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1


def test_the_two_commands_come_first():
    _, first = fences(README, "sh")[0]
    assert [line.partition("#")[0].strip() for line in first.splitlines()] == [
        "make gpt2",
        "make test",
    ]


def test_every_page_of_the_first_level_is_linked_or_is_the_sites_own():
    linked = re.findall(r"\(docs/([\w]+\.md)\b", README.read_text(encoding="utf-8"))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages - {*linked} == {"index.md"}
