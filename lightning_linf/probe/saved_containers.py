"""The entries of dicts, lists, sets and deques, kept and put back in place."""

import operator
from collections import OrderedDict, deque
from typing import Any

MUTABLE = (dict, list, set, deque)


class SavedContainer:
    """The entries that a container has now, to be put back as often as one likes.

    Entries are compared by identity. They are read and written by the methods of the base class:
    subclasses may forbid these or extend them, as the outputs of transformers do.
    """

    def __init__(self, container: Any) -> None:
        self._container = container
        self._base: Any = next(b for b in (OrderedDict, *MUTABLE) if isinstance(container, b))
        self._entries = self._present()

    def restore(self) -> None:
        """Put the entries back, in their order, unless they are there."""
        if are_same(self._present(), self._entries):
            return
        container, base, entries = self._container, self._base, self._entries
        base.clear(container)
        if isinstance(container, dict):
            half = len(entries) // 2
            for key, value in zip(entries[:half], entries[half:], strict=True):
                base.__setitem__(container, key, value)
        elif isinstance(container, set):
            base.update(container, entries)
        else:
            base.extend(container, entries)

    def _present(self) -> list[Any]:
        """List the entries; of a dict first all keys, then all values."""
        container, base = self._container, self._base
        values = base.values(container) if isinstance(container, dict) else ()
        return [*base.__iter__(container), *values]


def are_same(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(first) == len(second) and all(map(operator.is_, first, second))
