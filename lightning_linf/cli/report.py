"""`lightning-linf report`: runs as one HTML file."""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_linf.cli.errors import UsageError
from lightning_linf.html.page import make_page
from lightning_linf.report import files
from lightning_linf.runs.failure import failure_of
from lightning_linf.runs.load import RunError, load

_OUTPUT = "report: expected --output"
_FORMATS = ("png", "svg", "pdf")


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
    given = ((kind, getattr(options, kind)) for kind in _FORMATS)
    figures = {kind: Path(folder) for kind, folder in given if folder is not None}
    _check(output, figures)
    try:
        runs = load([Path(folder) for folder in options.runs])
        files.write_atomically(output, make_page(runs), _OUTPUT)
        print(f"Report of {len(runs)} run{'s' if len(runs) > 1 else ''}: {output}")
        for run in runs:
            if failure := failure_of(run):
                print(f"Note: {run.name}: {failure}")
        for note in (note for run in runs for note in run.notes):
            print(f"Note: {note}")
        if figures:
            # Not at the top: matplotlib takes a second, and need not be installed.
            from lightning_linf.figures.save import save_figures

            for file in save_figures(runs, figures):
                print(f"Figure: {file}")
    except (RunError, OSError) as error:
        raise UsageError(f"report: {error}") from error


def _check(output: Path, figures: Mapping[str, Path]) -> None:
    """Refuse now what would otherwise fail only after the runs are read."""
    if not output.parent.is_dir():
        raise UsageError(
            f"{_OUTPUT} to be a file in a folder that exists, got {str(output)!r}. Write a name "
            "such as report.html."
        )
    files.destination(output, _OUTPUT)
    for kind, folder in figures.items():
        if find_spec("matplotlib") is None:
            raise UsageError(
                f"report: expected matplotlib for --{kind}, got none. Install it with "
                "pip install 'lightning-linf[figures]', or use the PNG buttons of the report."
            )
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"report: expected --{kind} to be a folder or a new name, got {str(folder)!r}. "
                "Choose another name."
            )


def make_parser() -> argparse.ArgumentParser:
    """List the options."""
    parser = argparse.ArgumentParser(
        prog="lightning-linf report",
        description="Write the geometry of runs as one HTML file, which needs no other file and no "
        "server: the panels of the TensorBoard plugin, a table and a verdict in words.",
        epilog="Reads geometry.jsonl, which the monitors write beside any logger, and where that "
        "holds no record TensorBoard's event files. Links to folders are followed.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_DIR", help="Folder of a run, or one with runs below it.")
    add("-o", "--output", required=True, metavar="FILE.html", help="What to write.")
    for kind in _FORMATS:
        add(
            f"--{kind}",
            metavar="FOLDER",
            help=f"Also draw each panel into a {kind.upper()} file there; needs matplotlib.",
        )
    return parser
