"""Links and anchors of README and docs lead somewhere, where the repository is browsed."""

import re
from functools import cache
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import pytest
from support.documents import PAGES, ROOT, name_of, tokens


def links(page):
    """Yield the targets of all links and pictures."""
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield target
            elif child.type == "html_inline":
                yield from re.findall(r'(?:href|src)="([^"]*)"', child.content)
        if token.type == "html_block":
            yield from re.findall(r'(?:href|src)="([^"]*)"', token.content)


@cache
def anchors(page):
    """Name the headings of a page as GitHub does, and what has an id of its own."""
    found, seen = set(), {}
    parsed = tokens(page)
    for token, inside in pairwise(parsed):
        if token.type == "heading_open":
            text = "".join(c.content for c in inside.children if c.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            seen[slug] = seen.get(slug, -1) + 1
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        if token.type in ("html_block", "inline"):
            found.update(re.findall(r'\b(?:id|name)="([^"]*)"', token.content))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_anchors_that_exist(page):
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", f"{link}: expected https, or a path in the repository"
            assert parts.netloc, link
            continue
        assert not link.startswith("/"), f"{link}: expected a path from the page"
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_relative_to(ROOT), f"{link}: leads out of the repository"
        if target.parent == ROOT / "docs" / "gallery" and target.suffix == ".html":
            continue  # made when the site is built, which then follows the link
        assert target.exists(), f"{link}: no such file"
        if parts.fragment and target.suffix == ".md":
            assert unquote(parts.fragment) in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_picture_says_in_words_what_it_shows(page):
    pictures = [c for token in tokens(page) for c in token.children or () if c.type == "image"]
    assert [p.attrGet("src") for p in pictures if not p.content.strip()] == []


def test_headings_are_named_as_github_does(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# N(Φ) and `H(Φ)`: *both* ends\n## A\n## A\n<a id="b"></a>\n')
    assert anchors(page) == {"nφ-and-hφ-both-ends", "a", "a-1", "b"}
