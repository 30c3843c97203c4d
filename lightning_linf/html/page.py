"""The HTML file: each run's last report, then the panels with their data inside."""

import html
import json
from collections.abc import Container, Sequence
from importlib.metadata import version
from typing import Any

from lightning_linf.html.script import bundle
from lightning_linf.panels import payload
from lightning_linf.panels.files import STATIC
from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.report.markup import paragraphs, words
from lightning_linf.runs.failure import failure_of
from lightning_linf.runs.run import MAX_STEPS, Run

# Whatever names of runs and layers hold, the browser fetches nothing from anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def make_page(runs: Sequence[Run]) -> str:
    """Write runs as one HTML page that needs no other file, and that can be encoded as UTF-8."""
    style = "".join(
        (STATIC / name).read_text(encoding="utf-8")
        for name in ("vendor/uPlot.min.css", "style.css", "print.css")
    )
    # A script element ends at "</script", and not even there after "<!--<script".
    data = json.dumps(_data(runs), allow_nan=False).replace("<", "\\u003c")
    said: set[str] = set()
    reports = ""
    for run in runs:
        reports += _report(run, said)
        said.update(run.report.legend if run.report is not None else ())
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
<header>
<h1>{html.escape(title)}</h1>
<p class="muted">Made by lightning_linf {version("lightning-linf")}.</p>
</header>
<section aria-label="Last measurements">
{reports}</section>
<div id="panels"></div>
<noscript><p>The panels need JavaScript; what is above does not.</p></noscript>
<script type="application/json" id="data">{data}</script>
<script type="module">
{bundle(STATIC / "panels" / "report.js")}</script>
</body>
</html>
"""
    return page.encode("utf-8", "replace").decode("utf-8")


def _report(run: Run, said: Container[str]) -> str:
    name = html.escape(run.name)
    failure = failure_of(run)
    content = paragraphs(failure, kind="failure") if failure else ""
    if run.report is not None:
        when = f"At step {payload.counted(run.report_step):,}, the last whole measurement."
        content += paragraphs(when, kind="muted")
        content += words(run.report, name, failure is None, said)
    elif failure is None:
        content = paragraphs(
            "No verdict: its records hold no report of its smoothness. LinfSmoothnessMonitor "
            "measures it; an earlier version of lightning_linf kept no reports."
        )
    return f'<section class="panel words"><h2>{name}</h2>{content}</section>\n'


def _data(runs: Sequence[Run]) -> dict[str, Any]:
    """Collect what the panels would ask TensorBoard's server for."""
    listed = {
        run.name: {
            "scalars": sorted(run.scalars),
            "own": own_scalars(run.own),
            "tables": {tag: table.metadata for tag, table in run.tables.items()},
            "report": run.report is not None,
        }
        for run in runs
    }
    return {
        "runs": payload.listing(listed, [note for run in runs for note in run.notes]),
        "scalars": {
            run.name: {"curves": payload.curves(_points(run), most=MAX_STEPS)} for run in runs
        },
        "tables": {run.name: _tables(run) for run in runs},
        "reports": {
            run.name: payload.report(run.report_step, run.report)
            for run in runs
            if run.report is not None
        },
    }


def _points(run: Run) -> dict[str, Any]:
    return {tag: points.with_times() for tag, points in {**run.scalars, **run.own}.items()}


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
