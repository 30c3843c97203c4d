"""What is held of a run while its files are read: a few bytes a record, however long it is."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from lightning_linf.panels.table import Metadata, thin

Point = tuple[int, float]


class Points:
    """Steps, values and times of one scalar, in the order of steps; 24 bytes a point."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._steps, self._values, self._times = array("q"), array("d"), array("d")
        for step, value in points:
            self.add(step, value)

    def add(self, step: int, value: float, time: float | None = None) -> None:
        """Append a point, and forget those from its step on: a training has gone back to there.

        Args:
            step: Of an optimizer.
            value: Of the scalar.
            time: When it was logged, in seconds since 1970, if that is known.
        """
        self.cut(step)
        self._steps.append(step)
        self._values.append(value)
        self._times.append(math.nan if time is None else time)

    def cut(self, step: int) -> None:
        """Forget all points from a step on."""
        kept = bisect_left(self._steps, step)
        del self._steps[kept:], self._values[kept:], self._times[kept:]

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
        """Append a record, which lies at a place in the file of this number.

        Those from its step on are forgotten, as those of :class:`Points` are.
        """
        self.cut(step)
        self._steps.append(step)
        self._files.append(file)
        self._places.append(place)

    def cut(self, step: int) -> None:
        """Forget all records from a step on."""
        kept = bisect_left(self._steps, step)
        del self._steps[kept:], self._files[kept:], self._places[kept:]

    def __len__(self) -> int:
        return len(self._steps)

    def latest_first(self) -> Iterator[tuple[int, int, int]]:
        """Go back from the last step, giving step, file and place."""
        columns = (self._steps, self._files, self._places)
        return zip(*map(reversed, columns), strict=True)

    def evenly(self, most: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Choose steps evenly, the first and the last among them.

        Returns:
            The number of all steps; step, file and place of those chosen.
        """
        chosen = thin(len(self._steps), most)
        return len(self._steps), [(self._steps[i], self._files[i], self._places[i]) for i in chosen]


class Series(Places):
    """Where the arrays of one table lie."""

    def __init__(self, tag: str, metadata: Metadata) -> None:
        super().__init__()
        self.tag = tag  # in event files that of the series, in others the record's
        self.metadata = metadata
        self.latest = 0.0  # when it was last added to, to be compared with others of the tag
