"""Read `geometry.jsonl`."""

from collections import defaultdict
from pathlib import Path

from lightning_linf import record
from lightning_linf.panels.table import REPORT, SHOWN_REPORT, Array, lay_out
from lightning_linf.runs.run import Run
from lightning_linf.runs.series import Places, Points, Series


def read_records(run: Run, path: Path) -> None:
    """Add all that a file holds to a run, with notes on what cannot be read."""
    scalars: defaultdict[str, Points] = defaultdict(Points)
    tables: defaultdict[str, list[Series]] = defaultdict(list)
    reports = Places()
    num_broken: defaultdict[str, int] = defaultdict(int)
    restarts: dict[int, int] = {}  # the first step after each
    with open(path, "rb") as file:
        reader = record.Reader(file)

        def read(series: Series, _: int, place: int) -> Array | None:
            try:
                return lay_out(reader.at(place))[0]
            except ValueError:  # a training has cut the file meanwhile
                return None

        for place, entry in reader:
            for tag, value in entry.scalars.items():
                scalars[tag].add(entry.step, value, entry.wall_time)
            if entry.restart:
                restarts.setdefault(entry.restart, entry.step)
            if entry.report is not None and entry.tag + REPORT == SHOWN_REPORT:
                reports.add(entry.step, 0, place)
            if not entry.columns:
                continue
            try:
                _, metadata = lay_out(entry)
            except ValueError:  # its rows differ in width, or there are none
                num_broken[entry.tag] += 1
                continue
            kinds = tables[entry.tag]
            series = next((one for one in kinds if one.metadata == metadata), None)
            if series is None:
                kinds.append(series := Series(entry.tag, metadata))
            series.add(entry.step, 0, place)
            series.latest = place
        run.scalars.update(scalars)
        for note in reader.notes():
            run.note(note)
        for number, step in restarts.items():
            run.note(f"after restart {number} of the processes, the first record is of step {step}")
        for tag, number in num_broken.items():
            several = "s" if number > 1 else ""
            run.note(f"{tag}: {number} record{several} left out that cannot be made a table of")
        for tag, kinds in tables.items():
            run.add_table(tag, kinds, read)
        run.add_report(reports, lambda _, place: reader.at(place).report)
