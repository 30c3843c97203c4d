"""What pages take from results about the edge of stability, and the largest stable step."""

from collections.abc import Iterable

import read_results as read
from formatting import by_name, table


def edges() -> str:
    """Write where full-batch runs settled, and how well the stable rate was foretold."""
    rates: dict[int, list[float]] = {}
    for step, ratio in read.stable_rates():
        rates.setdefault(step, []).append(ratio)
    rows = [(f"{step:,}", f"{min(found):.2f} to {max(found):.2f}") for step, found in rates.items()]
    return (
        f"Of {len(read.edges())} full-batch runs {len(_reached())} reached the edge, and settled "
        f"at a mean of {edges_settled()}.\nThe largest stable rate as measured, over the one found "
        f"by trying, of {len(next(iter(rates.values())))} optimizers:\n\n"
        + table(("after steps", "measured over tried"), rows)
    )


def edges_settled() -> str:
    """Give the mean edges, at the end, of runs that reached it."""
    found = [run.mean for run in _reached()]
    return f"{min(found):.2f} to {max(found):.2f}"


def edges_reached() -> str:
    """Count the runs that reached the edge."""
    return f"{len(_reached())} of {len(read.edges())}"


def stable_rates_early() -> str:
    """Give the largest stable rate over the one found by trying, early in training."""
    return _range(ratio for step, ratio in read.stable_rates() if step < 1600)


def stable_rates_late() -> str:
    """Give the same later on."""
    return _range(ratio for step, ratio in read.stable_rates() if step >= 1600)


def edges_most() -> str:
    """Give the largest single edge, at the end, of runs that reached it."""
    return f"{max(run.most for run in _reached()):.2f}"


def losses_at_the_edge() -> str:
    """Give the largest loss with which a run ended that reached the edge."""
    return f"{max(run.loss for run in _reached()):.2g}"


def _reached() -> list[read.Edge]:
    return [run for run in read.edges() if run.reached != "never"]


def _range(found: Iterable[float]) -> str:
    values = list(found)
    return f"{min(values):.3g} to {max(values):.3g}"


PLACES = by_name(
    edges,
    edges_settled,
    edges_reached,
    edges_most,
    losses_at_the_edge,
    stable_rates_early,
    stable_rates_late,
)
