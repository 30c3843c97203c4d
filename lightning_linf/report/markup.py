"""A report's text as HTML, for a page and for a notebook."""

import html
from collections.abc import Container

from lightning_linf.report.text import ReportText

# In a notebook there is no style sheet of ours.
_STYLE = """<style>
.linf-report p { margin: 4px 0; max-width: 100ch; }
.linf-report .muted { opacity: 0.7; }
.linf-report .scroll { overflow: auto; margin: 8px 0; }
.linf-report th, .linf-report td { text-align: right; white-space: nowrap; padding: 2px 8px; }
.linf-report th:first-child { text-align: left; }
</style>"""


def words(
    text: ReportText, label: str, with_verdict: bool = True, said: Container[str] = ()
) -> str:
    """Lay out what a terminal shows, of which any cell may hold a user's own words.

    Args:
        text: Of the report.
        label: What the table is of, for those who have it read to them; it is escaped already.
        with_verdict: False for a training that is lost, of which a verdict would mislead.
        said: Lines of a legend that stand above on the page already, and are not printed again.
    """
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in text.headings)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in text.rows
    )
    return (
        paragraphs(*text.header)
        + f'<div class="scroll" tabindex="0" role="region" aria-label="{label}: table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + "".join(
            paragraphs(line, kind="muted said" if line in said else "muted") for line in text.legend
        )
        + (paragraphs(text.verdict, text.shares) if with_verdict else "")
    )


def paragraphs(*lines: str, kind: str = "text") -> str:
    """Put each line into a paragraph of this class."""
    return "".join(f'<p class="{kind}">{html.escape(line)}</p>' for line in lines)


def in_notebook(text: ReportText) -> str:
    """Lay out a report where nothing else gives it a style."""
    return f'{_STYLE}<div class="linf-report">{words(text, "Geometry of the loss")}</div>'
