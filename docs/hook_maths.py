"""Formulas as MathML, which browsers draw by themselves: a hook of the site."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What `pymdownx.arithmatex` makes of $...$ and $$...$$ where it is generic.
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the formulas of a page into MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    return convert(html.unescape(match[3]).strip(), display=display)
