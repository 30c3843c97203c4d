"""The error for parameters without known blocks, and short names for many of them."""

import re
from collections.abc import Iterable, Sequence

# The number of a layer in a dotted name: of "h.10.fc2.weight" the 10, not the 2.
_NUMBER = re.compile(r"(?<![^\s.])\d+(?=\.)|(?<=\.)\d+(?![^\s.,;])")


class PlacementError(ValueError):
    """Raised if the structure of a module does not tell the blocks of all its parameters."""


def gathered(texts: Iterable[str]) -> dict[str, list[str]]:
    """Group texts that differ only in the numbers of layers.

    Returns:
        The texts of each group, by one short text that stands for all of them.

    Example:
        >>> list(gathered(["h.0.q and h.0.k", "h.1.q and h.1.k", "h.2.q and h.2.k", "head"]))
        ['h.{0-2}.q and h.{0-2}.k', 'head']
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(_NUMBER.sub("0", text), []).append(text)
    return {_stand_in(members): members for members in groups.values()}


def expression(names: Sequence[str]) -> str:
    """Make a regular expression that finds all names of one group of :func:`gathered`."""
    escaped = re.escape(names[0])
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    patterns = iter([r"\d+" if len(set(column)) > 1 else column[0] for column in columns])
    return _NUMBER.sub(lambda _: next(patterns), escaped.replace(r"\.", ".")).replace(".", r"\.")


def _stand_in(members: Sequence[str]) -> str:
    columns = list(zip(*map(_NUMBER.findall, members), strict=True))
    varying = {column for column in columns if len(set(column)) > 1}
    # If several numbers vary independently, no range tells which of them go together.
    joined = _ranges(varying.copy().pop()) if len(varying) == 1 else "*"
    shown = iter([joined if column in varying else column[0] for column in columns])
    return _NUMBER.sub(lambda _: next(shown), members[0])


def _ranges(texts: Iterable[str]) -> str:
    numbers = sorted(map(int, texts))
    first, last = numbers[0], numbers[-1]
    is_range = len(numbers) > 2 and last - first == len(numbers) - 1
    return f"{{{first}-{last}}}" if is_range else f"{{{','.join(map(str, numbers))}}}"
