"""What is held of a run while its files are read: a few bytes a record, however long it is."""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lightning_linf.panels.table import Metadata, thin

Point = tuple[int, float]


class Points:
    """Steps, values and times of one scalar, in the order of the files; 24 bytes a point."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._steps, self._values, self._times = array("q"), array("d"), array("d")
        for step, value in points:
            self.add(step, value)

    def add(self, step: int, value: float, time: float | None = None) -> None:
        """Append a point, which was logged at a time, in seconds since 1970, if that is known."""
        self._steps.append(step)
        self._values.append(value)
        self._times.append(math.nan if time is None else time)

    def cut(self, step: int) -> None:
        """Forget all points from a step on."""
        kept = [i for i, one in enumerate(self._steps) if one < step]
        self._steps = array("q", (self._steps[i] for i in kept))
        self._values = array("d", (self._values[i] for i in kept))
        self._times = array("d", (self._times[i] for i in kept))

    def move(self, num_steps: int) -> None:
        """Number all steps by so many more."""
        self._steps = array("q", (step + num_steps for step in self._steps))

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Point]:
        return zip(self._steps, self._values, strict=True)

    def with_times(self) -> Iterable[Sequence[float]]:
        """Give steps and values, with their times if all are known."""
        if any(map(math.isnan, self._times)):
            return self
        return zip(self._steps, self._values, self._times, strict=True)


class Places:
    """Where records lie in files, 24 bytes each. The few that are shown are read a second time."""

    def __init__(self) -> None:
        self._steps, self._files, self._places = array("q"), array("q"), array("q")

    def add(self, step: int, file: int, place: int) -> None:
        """Append a record, which lies at a place in the file of this number."""
        self._steps.append(step)
        self._files.append(file)
        self._places.append(place)

    def cut(self, step: int) -> None:
        """Forget all records from a step on."""
        kept = [i for i, one in enumerate(self._steps) if one < step]
        for column in (self._steps, self._files, self._places):
            column[:] = array("q", (column[i] for i in kept))

    def __len__(self) -> int:
        return len(self._steps)

    def latest_first(self) -> Iterator[tuple[int, int, int]]:
        """Go back from the last step, giving step, file and place; of one step the later first."""
        for i in np.argsort(np.array(self._steps), kind="stable")[::-1].tolist():
            yield self._steps[i], self._files[i], self._places[i]

    def evenly(self, most: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Choose steps evenly, the first and the last among them; of one step the later record.

        Returns:
            The number of all steps; step, file and place of those chosen.
        """
        steps = np.array(self._steps)
        order = np.argsort(steps, kind="stable")
        is_last = np.append(np.diff(steps[order]) != 0, True)[: len(steps)]
        distinct = order[is_last]
        chosen = distinct[thin(len(distinct), most)]
        return len(distinct), [
            (self._steps[i], self._files[i], self._places[i]) for i in chosen.tolist()
        ]


class Series(Places):
    """Where the arrays of one table lie."""

    def __init__(self, tag: str, metadata: Metadata) -> None:
        super().__init__()
        self.tag = tag  # in event files that of the series, in others the record's
        self.metadata = metadata
        self.latest = 0.0  # when it was last added to, to be compared with others of the tag
