"""Where a recorder writes: `geometry.jsonl`, and an event file where tensorboard is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_linf import quantities, record
from lightning_linf.record import Record
from lightning_linf.tensorboard import layout
from lightning_linf.tensorboard.writer import write_record


class RunFolder:
    """A folder that gets the records of one training, in the order of their steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._has_begun = False

    def write(self, entry: Record) -> None:
        """Append a record. The first one moves those of its step and later steps out of the way."""
        path = self._folder / record.FILE_NAME
        if not self._has_begun:
            kept = record.cut(path, entry.step)
            if kept is not None:
                rank_zero_info(
                    f"{path}: the records from step {entry.step} on of an earlier training are "
                    f"now in {kept}."
                )
            self._has_begun = True
        record.append(path, entry)
        if self._writer is None and find_spec("tensorboard") is not None:
            self._writer = self._open()
        if self._writer is not None:
            for tag, value in entry.scalars.items():
                self._writer.add_scalar(tag, value, entry.step)
            if entry.columns or entry.report is not None:
                write_record(self._writer, entry)
            self._writer.flush()  # an open tab shows a measurement when it is made

    def close(self) -> None:
        """Close the event file; a later record opens another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        # Not at the top: it needs tensorboard.
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._folder))
        names = [monitor.name for monitor in quantities.MONITORS]
        writer.add_custom_scalars(layout.custom_scalars(names))
        return writer
