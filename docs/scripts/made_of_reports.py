"""What a page takes from a report that was saved: `docs/results/report.json`."""

import sys
from pathlib import Path

from formatting import by_name

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_linf import GeometryReport  # the line above lets it be found

RESULT = Path(__file__).resolve().parents[1] / "results" / "report.json"


def printed_report() -> str:
    """Print it, as the command that measured it did."""
    return f"```text\n{GeometryReport.load(RESULT)}\n```"


def noise_of_report() -> str:
    """Give its noise scale."""
    noise = GeometryReport.load(RESULT).noise
    assert noise is not None, "it is of several batches"
    return f"{noise.noise_scale:.3g}"


def step_of_report() -> str:
    """Give the ends of the advantage of one step of Adam's geometry, along the gradient."""
    return str(GeometryReport.load(RESULT).step_advantage_interval["coordinate"])


PLACES = by_name(printed_report, noise_of_report, step_of_report)
