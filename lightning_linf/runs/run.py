"""One run, as a page shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_linf.panels.table import Table, stack
from lightning_linf.report import ReportText, text_of
from lightning_linf.runs.series import Places, Points, Series

MAX_STEPS = 250  # of each run in the page, whose size is this times all layers and quantities


@dataclass
class Run:
    """Everything that was measured in one training."""

    name: str
    scalars: dict[str, Points] = field(default_factory=dict)  # by tag
    tables: dict[str, Table] = field(default_factory=dict)  # by tag, of at most MAX_STEPS steps
    own: dict[str, Points] = field(default_factory=dict)  # the training's losses and rates
    report: ReportText | None = None  # the last that is whole
    report_step: int = -1
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say what was left out."""
        self.notes.append(f"{self.name}: {text}")

    def add_table(
        self, tag: str, kinds: Sequence[Series], read: Callable[[Series, int, int], Any]
    ) -> None:
        """Read the table of the parameters that the run had last, at evenly spaced steps.

        Args:
            tag: Of its records.
            kinds: A series for each set of parameters that the run has had.
            read: Gives the array of a series from the number of a file and a place in it.
        """
        *others, present = sorted(kinds, key=lambda series: series.latest)
        num_steps, chosen = present.evenly(MAX_STEPS)
        rows = ((step, read(present, file, place)) for step, file, place in chosen)
        table, note = stack(present.metadata, rows)
        if table.steps:
            self.tables[tag] = replace(table, num_steps=num_steps)
        if note:
            self.note(f"{tag}: {note}")
        if num_other := sum(map(len, others)):
            self.note(f"{tag}: {num_other} records of other parameters left out")

    def add_report(self, places: Places, read: Callable[[int, int], Any]) -> None:
        """Read the last report that is whole.

        Args:
            places: Where all reports lie.
            read: Gives what ``GeometryReport.to_dict`` made, from the number of a file and a place.
        """
        broken: list[str] = []
        for step, file, place in places.latest_first():
            try:
                self.report, self.report_step = text_of(read(file, place)), step
                break
            except ValueError as error:  # damaged, of another schema, or cut off meanwhile
                broken.append(f"the last at step {step}: {error}")
        if broken:
            several = "s" if len(broken) > 1 else ""
            self.note(f"{len(broken)} broken report{several} left out, {broken[0]}")
