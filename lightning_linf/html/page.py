"""The HTML file: each run's last report, then the panels with their data inside."""

import html
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lightning_linf.html.script import bundle
from lightning_linf.panels import payload
from lightning_linf.panels.files import STATIC
from lightning_linf.report import ReportText
from lightning_linf.runs.run import MAX_STEPS, Run

# Whatever names of runs and layers hold, the browser fetches nothing from anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def make_page(runs: Sequence[Run]) -> str:
    """Write runs as one HTML page that needs no other file, and that can be encoded as UTF-8."""
    style = "".join(
        (STATIC / name).read_text(encoding="utf-8")
        for name in ("vendor/uPlot.min.css", "style.css")
    )
    # A script element ends at "</script", and not even there after "<!--<script".
    data = json.dumps(_data(runs), allow_nan=False).replace("<", "\\u003c")
    reports = "".join(map(_report, runs))
    title = f"Geometry of {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body class="report">
<h1>{html.escape(title)}</h1>
<p class="muted">Made by lightning_linf {version("lightning-linf")}.</p>
{reports}
<div id="panels"></div>
<noscript><p>The panels need JavaScript; what is above does not.</p></noscript>
<script type="application/json" id="data">{data}</script>
<script type="module">
{bundle(STATIC / "panels" / "report.js")}</script>
</body>
</html>
"""
    return page.encode("utf-8", "replace").decode("utf-8")


def _report(run: Run) -> str:
    name = html.escape(run.name)
    if run.report is not None:
        content = _content(name, run.report_step, run.report)
    else:
        content = _paragraphs(
            "No verdict: its records hold no report of its smoothness. LinfSmoothnessMonitor "
            "measures it; an earlier version of lightning_linf kept no reports."
        )
    return f'<section class="panel words"><h2>{name}</h2>{content}</section>\n'


def _content(run_name: str, step: int, text: ReportText) -> str:
    """Lay out what a terminal shows, of which any cell may hold a user's own words."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in text.headings)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in text.rows
    )
    return (
        _paragraphs(f"At step {step:,}, the last whole measurement.", kind="muted")
        + _paragraphs(*text.header)
        + f'<div class="scroll" tabindex="0" role="region" aria-label="{run_name}: table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + _paragraphs(*text.legend, kind="muted")
        + _paragraphs(text.verdict, text.shares)
    )


def _paragraphs(*lines: str, kind: str = "text") -> str:
    return "".join(f'<p class="{kind}">{html.escape(line)}</p>' for line in lines)


def _data(runs: Sequence[Run]) -> dict[str, Any]:
    """Collect what the panels would ask TensorBoard's server for."""
    listed = [
        {
            "name": run.name,
            "scalars": sorted(run.scalars),
            "tables": {tag: table.metadata.to_json() for tag, table in run.tables.items()},
            "report": run.report is not None,
        }
        for run in runs
    ]
    return {
        "runs": {
            "runs": listed,
            "notes": [note for run in runs for note in run.notes],
            "vocabulary": payload.vocabulary(),
        },
        "scalars": {
            run.name: {"curves": payload.curves(run.scalars, most=MAX_STEPS)} for run in runs
        },
        "tables": {run.name: _tables(run) for run in runs},
        "reports": {
            run.name: payload.report(run.report_step, run.report)
            for run in runs
            if run.report is not None
        },
    }


def _tables(run: Run) -> dict[str, Any]:
    """Give by tag and column the numbers of all layers, or for quantiles the fan of each row."""
    result: dict[str, Any] = {}
    for tag, table in run.tables.items():
        num_rows = table.metadata.shape[0]
        result[tag] = {
            column.name: payload.layers(table, column.name)
            if column.width == 1
            else [payload.fan(table, column.name, row) for row in range(num_rows)]
            for column in table.metadata.columns
        }
    return result
