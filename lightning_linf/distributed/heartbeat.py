"""What a rank of a probe does, told to the others every second, and reported if it waits long."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from lightning_linf.distributed.place import HERE, Note
from lightning_linf.distributed.roll_call import (
    BEAT_SECONDS,
    REMEDY,
    absent,
    connect,
    have_met,
    key,
    timeout_seconds,
)

_log = logging.getLogger(__name__)
_PATIENCE = 0.8  # of the group's timeout, at which NCCL ends a process without a word of probes


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name what this rank does inside, for the messages of ranks that wait for it. Phases nest.

    During the outermost phase, if there are several ranks, a thread tells the others where this one
    is. If it does not move for most of the time after which the process group gives up, it logs
    which ranks are missing and what they do: with NCCL no exception will.
    """
    with _Heartbeat() if not HERE.phases and have_met() else nullcontext():
        HERE.enter(name)
        try:
            yield
        finally:
            HERE.leave()


class _Heartbeat(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="lightning_linf heartbeat", daemon=True)
        self._ended = threading.Event()
        self._rank = torch.distributed.get_rank()
        self._patience = _PATIENCE * timeout_seconds()
        self._beat = time.time_ns()  # of no earlier heartbeat
        self._reported: float | None = None  # since when the rank stood still that was reported

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join(timeout=BEAT_SECONDS)

    def run(self) -> None:
        """Tell and watch until the probe has ended, or the store with the rank that keeps it."""
        try:
            if self._ended.wait(BEAT_SECONDS):
                return  # it was short, and needs no connection
            self._store = connect()
            while not self._ended.is_set():
                self._tell()
                self._watch()
                self._ended.wait(BEAT_SECONDS)
            self._tell()
        except RuntimeError:
            _log.debug("probe: the store of the ranks cannot be reached any more.", exc_info=True)

    def _tell(self) -> None:
        self._beat += 1
        self._store.set(key(self._rank), Note.of_here(self._beat).to_text())

    def _watch(self) -> None:
        since = HERE.moved_at
        seconds = time.monotonic() - since
        if seconds < self._patience or since == self._reported:
            return
        self._reported = since
        if (missing := absent(self._tell_for)) and not self._ended.is_set():
            _log.error(
                f"probe: rank {self._rank} has waited {seconds:.0f} seconds in: {HERE}. "
                f"{missing} {REMEDY}"
            )

    def _tell_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._ended.wait(BEAT_SECONDS):
            self._tell()
