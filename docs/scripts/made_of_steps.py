"""What pages take from results about the largest stable step, and about what steps cost."""

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
        f"Of {len(read.edges())} full-batch runs {len(_settled())} reached the edge, and settled "
        f"at a mean of {edges_settled()}.\nThe largest stable rate as measured, over the one found "
        f"by trying, of {len(next(iter(rates.values())))} optimizers:\n\n"
        + table(("after steps", "measured over tried"), rows)
    )


def edges_settled() -> str:
    """Give the mean edges, at the end, of runs that reached it."""
    return f"{min(_settled()):.2f} to {max(_settled()):.2f}"


def edges_reached() -> str:
    """Count the runs that reached the edge."""
    return f"{len(_settled())} of {len(read.edges())}"


def stable_rates_early() -> str:
    """Give the largest stable rate over the one found by trying, early in training."""
    return _range(ratio for step, ratio in read.stable_rates() if step < 1600)


def stable_rates_late() -> str:
    """Give the same later on."""
    return _range(ratio for step, ratio in read.stable_rates() if step >= 1600)


def cost_of_partitions() -> str:
    """Write what a step with each partition costs."""
    rows = [(name, *each) for name, each in read.optimizers().items() if name != "one copy"]
    return table(("step of", "without weight decay", "with"), rows)


def product_cost() -> str:
    """Give what a product costs."""
    return f"{read.measured('Hessian-vector product'):.2f}"


def _settled() -> list[float]:
    return [edge for reached, edge in read.edges() if reached != "never"]


def _range(found: Iterable[float]) -> str:
    values = list(found)
    return f"{min(values):.3g} to {max(values):.3g}"


PLACES = by_name(
    edges,
    edges_settled,
    edges_reached,
    stable_rates_early,
    stable_rates_late,
    cost_of_partitions,
    product_cost,
)
