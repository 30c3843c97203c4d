"""The command `lightning-linf`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from lightning_linf.cli.errors import UsageError
from lightning_linf.report.files import OutputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the program, and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="lightning-linf",
        description="Measure which geometry a loss landscape has, and show measured runs.",
        epilog="lightning-linf COMMAND --help says more.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("measure", help="the geometry at a Lightning checkpoint", add_help=False)
    commands.add_parser("report", help="runs with geometry data as one HTML file", add_help=False)
    chosen = parser.parse_args(arguments[:1]).command  # the rest belongs to the subcommand
    if chosen == "measure" and find_spec("jsonargparse") is None:
        print(
            "error: lightning-linf measure needs: pip install 'lightning-linf[cli]'",
            file=sys.stderr,
        )
        return 2
    try:
        _run(chosen, arguments[1:])
    except (UsageError, OutputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # what shells give for an interrupt
    return 0


def _run(command: str, arguments: Sequence[str]) -> None:
    # Not at the top: each needs packages that the others do not.
    if command == "report":
        from lightning_linf.cli.report import report

        report(arguments)
    else:
        from lightning_linf.cli.measure import measure

        measure(arguments)
