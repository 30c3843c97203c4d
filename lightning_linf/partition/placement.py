"""What has no place in a partition, and how one message names all of it."""

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(?<![^\s.])\d+(?=\.)|(?<=\.)\d+(?![^\s.,;])")  # of a layer, in a dotted name


class PlacementError(ValueError):
    """The structure of a module does not tell the blocks of all its parameters."""


def gathered(texts: Iterable[str]) -> dict[str, list[str]]:
    """Join texts that differ in the numbers of layers only.

    Returns:
        The texts by what stands for them.

    Example:
        >>> list(gathered(["h.0.q and h.0.k", "h.1.q and h.1.k", "h.2.q and h.2.k", "head"]))
        ['h.{0-2}.q and h.{0-2}.k', 'head']
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(_NUMBER.sub("0", text), []).append(text)
    return {_stand_in(members): members for members in groups.values()}


def expression(names: Sequence[str]) -> str:
    """Make a regular expression that finds names which :func:`gathered` joins."""
    escaped = re.escape(names[0])
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    patterns = iter([r"\d+" if len(set(column)) > 1 else column[0] for column in columns])
    return _NUMBER.sub(lambda _: next(patterns), escaped.replace(r"\.", ".")).replace(".", r"\.")


def _stand_in(members: Sequence[str]) -> str:
    columns = list(zip(*map(_NUMBER.findall, members), strict=True))
    varying = {column for column in columns if len(set(column)) > 1}
    # Several numbers that vary each in its own way: no list of them tells which go together.
    joined = _ranges(varying.copy().pop()) if len(varying) == 1 else "*"
    shown = iter([joined if column in varying else column[0] for column in columns])
    return _NUMBER.sub(lambda _: next(shown), members[0])


def _ranges(texts: Iterable[str]) -> str:
    numbers = sorted(map(int, texts))
    first, last = numbers[0], numbers[-1]
    is_range = len(numbers) > 2 and last - first == len(numbers) - 1
    return f"{{{first}-{last}}}" if is_range else f"{{{','.join(map(str, numbers))}}}"
