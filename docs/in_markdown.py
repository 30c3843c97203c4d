"""What places of pages are made with."""

import math
from collections.abc import Callable, Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float) -> str:
    """Write a share that something is at most."""
    return f"{math.ceil(round(100 * share, 6))} %"


def by_name(*made: Callable[[], str]) -> dict[str, Callable[[], str]]:
    """Give functions by the names of their places."""
    return {each.__name__.replace("_", " "): each for each in made}
