"""Docstrings as Markdown, for the reference pages of the site.

An extension of griffe, which reads the sources. Docstrings are written with roles (``:class:``,
``:math:``), as editors and Sphinx know them; here a role becomes a link where the site has the
name, and code where it does not.
"""

import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
_MATH = re.compile(r":math:`([^`]*)`")
_DISPLAYED = re.compile(r"^\.\. math::(.*\n(?:[ \t]+\S.*(?:\n|\Z))*)", re.MULTILINE)
_SOURCE = re.compile(r"^Source:\n((?:[ \t]+\S.*(?:\n|\Z)|\n(?=[ \t]))+)", re.MULTILINE)
_RETURNED = re.compile(r"^((?:Returns|Yields):\n[ \t]+)(?=\S)", re.MULTILINE)
_SHORT = re.compile(r"(?:[A-Z]\w*\.)?\w+$")  # with the class of a method
_COMMENT = re.compile(r"#\s*(.+)$")


class Docstrings(griffe.Extension):
    """Rewrite every docstring of the package, once it is read."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite those of a package that has just been loaded."""
        if pkg.name != "lightning_linf":
            return
        for each in _objects(pkg):
            if each.docstring is not None:
                each.docstring.value = as_markdown(each.docstring.value, each)
            elif each.is_attribute and each.parent is not None and each.parent.is_class:
                _describe_by_comment(each)


def as_markdown(text: str, where: griffe.Object) -> str:
    """Turn roles into links and code, and formulas into those between dollars."""
    text = _DISPLAYED.sub(lambda match: _formula(match[1]), text)
    text = _MATH.sub(lambda match: f"${' '.join(match[1].split())}$", text)
    text = _ROLE.sub(lambda match: _reference(match[1], match[2], where), text)
    text = _SOURCE.sub(lambda match: f"**Source:**\n\n{dedent(match[1])}", text)
    text = _RETURNED.sub(r"\1: ", text)  # griffe takes what is before the first colon for a type
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # a section of griffe's


def _formula(lines: str) -> str:
    body = dedent(lines).strip()
    if "&" in body:
        body = f"\\begin{{aligned}}{body}\\end{{aligned}}"
    return f"\n$$\n{body}\n$$\n"


def _reference(tilde: str, target: str, where: griffe.Object) -> str:
    name = _SHORT.search(target)[0] if tilde else target
    return f'<autoref optional identifier="{_path(target, where)}"><code>{name}</code></autoref>'


def _path(target: str, where: griffe.Object) -> str:
    """Find what a reader would: by its full path, or in the class, the module or its package."""
    root = where.package
    homes = [where.path]
    while "." in homes[-1]:
        homes.append(homes[-1].rpartition(".")[0])
    for home in homes:
        path = target if target.startswith(f"{root.name}.") else f"{home}.{target}"
        try:
            return str(root.modules_collection[path].canonical_path)
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            continue
    return target


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)  # type: ignore[arg-type]  # what is no alias is an object


def _describe_by_comment(attribute: griffe.Object) -> None:
    """Take the comment at the end of an attribute's line, or that above it, for its docstring."""
    if attribute.lineno is None or attribute.endlineno is None:
        return
    lines = attribute.lines_collection[attribute.filepath]  # type: ignore[index]  # of one file
    match = _COMMENT.search(lines[attribute.endlineno - 1])
    words = [match[1]] if match is not None else []
    above = attribute.lineno - 2
    while not match and lines[above].strip().startswith("#"):
        words.insert(0, lines[above].strip().removeprefix("#").strip())
        above -= 1
    text = " ".join(words)
    if text and not text.startswith(("type:", "noqa")):
        attribute.docstring = griffe.Docstring(
            text[0].upper() + text[1:] if text[1:2].isalpha() else text,
            parent=attribute,
            parser="google",
        )
