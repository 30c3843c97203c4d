"""Formulas as MathML, which browsers draw by themselves: a hook of the site."""

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What `pymdownx.arithmatex` makes of $...$ and $$...$$ where it is generic.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
_LIMITS = {"msub": "munder", "msubsup": "munderover"}
_LARGE = {"max", "min", "∏", "∑"}
ElementTree.register_namespace("", _NAMESPACE)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the formulas of a page into MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(match: re.Match[str]) -> str:
    formula = html.unescape(match[3]).strip()
    # The converter knows this environment, which GitHub draws, by another name.
    formula = formula.replace("{aligned}", "{split}")
    is_block = match[2] == "["
    mathml = convert(formula, display="block" if is_block else "inline")
    if "\\" in mathml or "<mi>&</mi>" in mathml:  # it lets pass what it does not know
        raise PluginError(
            f"expected a formula that latex2mathml knows, got {formula!r}. Rewrite it."
        )
    return f'<div class="formula">{_with_limits(mathml)}</div>' if is_block else mathml


def _with_limits(mathml: str) -> str:
    """Put what stands under a sum or a maximum below it, as formulas of their own line have it."""
    formula = ElementTree.fromstring(mathml)
    for element in formula.iter():
        name = element.tag.removeprefix(f"{{{_NAMESPACE}}}")
        if name in _LIMITS and element[0].text in _LARGE:
            element.tag = f"{{{_NAMESPACE}}}{_LIMITS[name]}"
            element[0].set("movablelimits", "true")  # but beside it in \textstyle
    return ElementTree.tostring(formula, encoding="unicode")
