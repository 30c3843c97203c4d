"""Read pages that are written whole from results."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]


def section(title: str, page: str = "results.md") -> str:
    """Give the text below a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """Give the table of a text: its titles, and each line."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    titles, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [titles, *rows]


def bullets(title: str) -> list[str]:
    """Give the points of a section of the results."""
    return re.findall(r"^- (.+)$", section(title), re.MULTILINE)


def bullet(title: str, start: str) -> str:
    """Give the one that begins so."""
    (line,) = (line for line in bullets(title) if line.startswith(start))
    return line
