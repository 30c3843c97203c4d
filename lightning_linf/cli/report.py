"""`lightning-linf report`: runs as one HTML file."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_linf.cli.errors import UsageError
from lightning_linf.html.figures import save_figures
from lightning_linf.html.page import make_page
from lightning_linf.report import files
from lightning_linf.runs.load import RunError, load

_OUTPUT = "report: expected --output"


def report(argv: Sequence[str]) -> None:
    """Run the subcommand.

    Raises:
        UsageError: If something is wrong that the user can put right.
        OutputError: If a file cannot be written there.
    """
    options = make_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    output = Path(options.output)
    figures = None if options.png is None else Path(options.png)
    _check(output, figures)
    try:
        runs = load([Path(folder) for folder in options.runs])
        files.write_atomically(output, make_page(runs), _OUTPUT)
        print(f"Report of {len(runs)} run{'s' if len(runs) > 1 else ''}: {output}")
        for note in (note for run in runs for note in run.notes):
            print(f"Note: {note}")
        if figures is not None:
            for file in save_figures(output, figures, sandbox=not _is_root()):
                print(f"Figure: {file}")
    except (RunError, OSError) as error:
        raise UsageError(f"report: {error}") from error


def _check(output: Path, figures: Path | None) -> None:
    """Refuse, before anything costs time, what would fail after it."""
    if not output.parent.is_dir():
        raise UsageError(
            f"{_OUTPUT} to be a file in a folder that exists, got {str(output)!r}. Write a name "
            "such as report.html."
        )
    files.destination(output, _OUTPUT)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UsageError(
            f"report: expected --png to be a folder or a new name, got {str(figures)!r}. Choose "
            "another name."
        )


def make_parser() -> argparse.ArgumentParser:
    """List the options."""
    parser = argparse.ArgumentParser(
        prog="lightning-linf report",
        description="Write the geometry of runs as one HTML file, which needs no other file and no "
        "server: the panels of the TensorBoard plugin, a table and advice in words.",
        epilog="Reads geometry.jsonl, which the monitors write beside any logger, and where that "
        "holds no record TensorBoard's event files. Links to folders are followed.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="Folder of a run, or one with runs below it.")
    add("-o", "--output", required=True, metavar="FILE.html", help="What to write.")
    add(
        "--png",
        metavar="FOLDER",
        help="Also draw each panel into a PNG file there; needs Chromium or Chrome.",
    )
    return parser


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
