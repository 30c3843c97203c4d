"""Read the geometry data of all runs through TensorBoard's own readers of event files."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from tensorboard.data.provider import RunTagFilter

from lightning_linf import json_numbers
from lightning_linf.panels import payload
from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.panels.table import REPORT, SHOWN_REPORT, Metadata, Table, stack, tag_of_record
from lightning_linf.quantities import PREFIX
from lightning_linf.report import ReportText, text_of
from lightning_linf.tensorboard import PLUGIN_NAME
from lightning_linf.tensorboard.plugin.bounded import bounded
from lightning_linf.tensorboard.tensors import decode_report

_MAX_EVENTS = 1_000_000  # the reader wants a limit; what it keeps is up to TensorBoard's flags
_MAX_BYTES = 200 * 2**20  # of one answer: TensorBoard's fast reader refuses those of 256 MiB
_MAX_CACHED = 32  # tables
_MAX_REPORTS = 10  # to look through for one that is whole; the last is always among them

_Result = tuple[Table, str | None]  # a table, and a note if some of its records were left out


@dataclass
class _Run:
    """What the page is told of a run before it asks for numbers."""

    tables: dict[str, Metadata] = field(default_factory=dict)  # by tag
    scalars: list[str] = field(default_factory=list)  # tags
    own: dict[str, list[str]] = field(default_factory=dict)  # by kind, tags of the training's own
    report: bool = False  # whether there is one to ask for
    changed: float = 0.0  # when the last event was written


class Source:
    """Read runs, and keep the tables that were read until something is added to them."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, ...], tuple[Any, _Result]] = OrderedDict()

    def runs(self, ctx: Any, experiment: str) -> Any:
        """List the runs with geometry data: what each holds, and notes on what was left out."""
        tables = self._provider.list_tensors(ctx, experiment_id=experiment, plugin_name=PLUGIN_NAME)
        scalars = self._provider.list_scalars(ctx, experiment_id=experiment, plugin_name="scalars")
        found: dict[str, Any] = {}
        notes = []
        for run, by_tag in tables.items():
            present, notes_of_run = _present(by_tag)
            notes += [f"{run}: {note}" for note in notes_of_run]
            for tag, (_, series, metadata) in present.items():
                entry = found.setdefault(run, _Run())
                entry.tables[tag] = metadata
                entry.changed = max(entry.changed, series.max_wall_time)
            if SHOWN_REPORT in by_tag:
                found.setdefault(run, _Run()).report = True
        for run, by_tag in scalars.items():
            ours, own = _shown(by_tag)
            if ours or run in found:
                entry = found.setdefault(run, _Run())
                entry.scalars, entry.own = ours, own
                shown = [*ours, *(tag for tags in own.values() for tag in tags)]
                times = [by_tag[tag].max_wall_time for tag in shown]
                entry.changed = max([entry.changed, *times])
        listed = {
            run: {**vars(found[run]), "changed": json_numbers.encode(found[run].changed)}
            for run in sorted(found)
        }
        return payload.listing(listed, notes)

    def scalars(self, ctx: Any, experiment: str, run: str) -> Any:
        """Read all curves of a run: those of its geometry, and its own that stand beside them.

        Raises:
            KeyError: If it has none.
            ValueError: If TensorBoard's reader fails on its data.
        """
        listed = self._provider.list_scalars(
            ctx,
            experiment_id=experiment,
            plugin_name="scalars",
            run_tag_filter=RunTagFilter(runs=[run]),
        )
        ours, own = _shown(listed[run])
        names = [*ours, *(tag for tags in own.values() for tag in tags)]
        if not names:
            raise KeyError(run)
        try:
            with bounded():
                read = self._provider.read_scalars(
                    ctx,
                    experiment_id=experiment,
                    plugin_name="scalars",
                    downsample=_MAX_EVENTS,
                    run_tag_filter=RunTagFilter(runs=[run], tags=names),
                )
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{run} holds a scalar that is not one number ({error}), and TensorBoard reads all "
                "or none. `lightning-linf report` leaves it out"
            ) from error
        tables = self._tables(ctx, experiment, run).values()
        first = max((metadata.own_steps_from for _, _, metadata in tables), default=0)
        points = {
            tag: [
                (datum.step - (0 if tag in ours else first), datum.value, datum.wall_time)
                for datum in data
            ]
            for tag, data in read.get(run, {}).items()
        }
        return {"curves": payload.curves(points)}

    def report(self, ctx: Any, experiment: str, run: str) -> tuple[int, ReportText]:
        """Give the step and the text of a run's last report.

        Raises:
            KeyError: If the run has none.
            ValueError: If none of the last ones can be read.
        """
        errors = []
        for datum in reversed(self._events(ctx, experiment, run, SHOWN_REPORT, _MAX_REPORTS)):
            try:
                return datum.step, text_of(decode_report(datum.numpy))
            except ValueError as error:
                errors.append(str(error))
        raise ValueError(f"{run} holds no report that is whole ({'; '.join(errors[:1])})")

    def table(self, ctx: Any, experiment: str, run: str, tag: str) -> _Result:
        """Read a table of a run, with at most ``payload.MAX_STEPS`` of its steps.

        Returns:
            The table, and a note if some of its records were left out.

        Raises:
            KeyError: If there is no such run or tag.
            ValueError: If TensorBoard's reader fails on its data.
        """
        series_tag, series, metadata = self._tables(ctx, experiment, run)[tag]
        key, state = (experiment, run, tag), (series_tag, series.max_step, series.max_wall_time)
        with self._lock:
            if key in self._cache and self._cache[key][0] == state:
                self._cache.move_to_end(key)
                return self._cache[key][1]
        result = self._read(ctx, experiment, run, series_tag, metadata)
        with self._lock:
            self._cache[key] = (state, result)
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return result

    def _tables(self, ctx: Any, experiment: str, run: str) -> dict[str, tuple[str, Any, Metadata]]:
        """Tell by tag where the present tables of a run are; see `_present`."""
        listed = self._provider.list_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN_NAME,
            run_tag_filter=RunTagFilter(runs=[run]),
        )
        return _present(listed.get(run, {}))[0]

    def _read(self, ctx: Any, experiment: str, run: str, tag: str, metadata: Metadata) -> _Result:
        most = max(1, min(_MAX_EVENTS, _MAX_BYTES // (4 * prod(metadata.shape) or 1)))
        try:
            read = self._events(ctx, experiment, run, tag, most)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{run}: {tag} holds an event that cannot be decoded ({error}), and TensorBoard "
                "reads all or none. `lightning-linf report` leaves it out"
            ) from error
        events = [(datum.step, datum.numpy) for datum in read]
        table, broken = stack(metadata, events)
        sampled = (
            f"so large a table that at most {most} steps are read" if len(events) == most else None
        )
        notes = "; ".join(note for note in (broken, sampled) if note)
        return table.thinned(payload.MAX_STEPS), notes or None

    def _events(self, ctx: Any, experiment: str, run: str, tag: str, most: int) -> Any:
        with bounded():
            read = self._provider.read_tensors(
                ctx,
                experiment_id=experiment,
                plugin_name=PLUGIN_NAME,
                downsample=most,
                run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
            )
        return read[run][tag]


def _shown(tags: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Give the tags of scalars of this package, and by kind those of the training's own."""
    ours = sorted(tag for tag in tags if tag.startswith(PREFIX))
    return ours, own_scalars(tag for tag in tags if not tag.startswith(PREFIX))


def _present(by_tag: Mapping[str, Any]) -> tuple[dict[str, tuple[str, Any, Metadata]], list[str]]:
    """Choose, for each table, the events with the parameters that the model has now.

    When parameters change while training, the table goes on under another tag in the event files.
    The one that was added to last is that of the present parameters.

    Args:
        by_tag: By tag in the event files, what the reader knows of its events.

    Returns:
        By the tag of the table: its tag in the event files, what the reader knows of its events,
        and their metadata. Beside it, notes on what is left out.
    """
    present: dict[str, tuple[str, Any, Metadata]] = {}
    notes = []
    for series_tag, series in sorted(by_tag.items(), key=lambda item: item[1].max_wall_time):
        if series_tag.endswith(REPORT):
            continue
        tag = tag_of_record(series_tag)
        try:
            metadata = Metadata.from_event(series.plugin_content)
        except ValueError as error:  # of another schema, or broken
            notes.append(f"{tag} left out: {error}")
            continue
        if tag in present:
            last_step = present[tag][1].max_step
            notes.append(
                f"{tag}: records of other parameters left out, the last at step {last_step}"
            )
        present[tag] = (series_tag, series, metadata)
    return present, notes
