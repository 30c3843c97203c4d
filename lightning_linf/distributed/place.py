"""Where this process is in a probe, and the note by which others learn of it."""

import json
import time
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Place:
    """Where a process is. Its main thread writes, and the thread of its heartbeat reads."""

    phases: list[str] = field(default_factory=list)  # from the outermost to the innermost
    progress: str = ""  # within the innermost
    num_meetings: int = 0  # collectives of probes in which this rank has arrived
    gave_up: bool = False  # an error has ended the probe here, so no other rank waits for this one
    moved_at: float = field(default_factory=time.monotonic)

    def enter(self, phase: str) -> None:
        """Begin a phase; in the outermost one everything is new."""
        self.gave_up = self.gave_up and bool(self.phases)
        self.phases.append(phase)
        self.report_progress("")

    def leave(self) -> None:
        """End the innermost phase."""
        self.phases.pop()
        self.report_progress("")

    def report_progress(self, text: str) -> None:
        """Say how far the present phase is, as "3 of at most 98 products"."""
        self.progress = text
        self.move()

    def arrive(self) -> None:
        """Take note that this rank enters a collective of a probe."""
        self.num_meetings += 1
        self.move()

    def move(self) -> None:
        """Take note that something has been done."""
        self.moved_at = time.monotonic()

    def __str__(self) -> str:
        return ", ".join([*self.phases, *filter(None, [self.progress])]) or "no probe"


HERE = Place()


class Note(NamedTuple):
    """What a rank tells of itself."""

    beat: int
    num_meetings: int
    gave_up: bool
    in_probe: bool
    place: str

    @classmethod
    def of_here(cls, beat: int) -> "Note":
        """Write the note of this process, which differs from the one before by its ``beat``."""
        return cls(beat, HERE.num_meetings, HERE.gave_up, bool(HERE.phases), str(HERE))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Note":
        """Read what :meth:`to_text` has written."""
        return cls(*json.loads(data))

    def to_text(self) -> str:
        """Write it for the store."""
        return json.dumps(self)
