"""Which ranks are missing at a collective of a probe, and where they were last."""

import time
from collections.abc import Callable
from typing import Any

import torch

from lightning_linf.distributed.place import HERE, Note

BEAT_SECONDS = 1.0
_LOOK_SECONDS = 3 * BEAT_SECONDS  # in which a rank that lives has told its place again
_MOST_NAMED = 5
REMEDY = (
    "Look at the last lines that the missing rank wrote: a process that was killed has often run "
    "out of memory. Resume from the last checkpoint. If that rank was only slow, give the strategy "
    "a longer timeout, as in DDPStrategy(timeout=timedelta(hours=1))."
)


def absent(wait: Callable[[float], object] = time.sleep) -> str:
    """Say which other ranks are missing at the collective in which this one has arrived.

    Missing is a rank that has arrived in fewer collectives, and one that tells nothing of a probe
    that it is in while this one ``wait``s for some seconds. One that has arrived everywhere and
    left the probe is not.

    Returns:
        Sentences; empty if no rank is missing.
    """
    try:
        ours = connect()
        others = [r for r in range(torch.distributed.get_world_size()) if r != _rank()]
        before = {rank: _read(ours, rank) for rank in others}
        wait(_LOOK_SECONDS)
        found = [how_missing(rank, before[rank], _read(ours, rank)) for rank in others]
    except RuntimeError as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return (
            "The store in which ranks tell where they are cannot be reached, so the process that "
            f"keeps it, often that of rank 0, has ended ({first})."
        )
    missing = [sentence for sentence in found if sentence]
    if len(missing) > _MOST_NAMED:
        missing[_MOST_NAMED:] = [f"{len(missing) - _MOST_NAMED} more ranks are missing."]
    return " ".join(missing)


def how_missing(rank: int, before: Note | None, now: Note | None) -> str:
    """Say in a sentence how a rank is missing; empty if it is not."""
    if now is None:
        return f"Rank {rank} is missing: it has told of no probe."
    has_arrived = now.num_meetings >= HERE.num_meetings
    if now.gave_up or (has_arrived and not now.in_probe):
        return ""
    if before is not None and now.beat == before.beat:
        return (
            f"Rank {rank} is missing: it has told nothing for {_LOOK_SECONDS:.0f} seconds, and was "
            f"last in: {now.place}."
        )
    return "" if has_arrived else f"Rank {rank} is missing: it runs, and is in: {now.place}."


def _read(ours: Any, rank: int) -> Note | None:
    return Note.from_bytes(ours.get(key(rank))) if ours.check([key(rank)]) else None


def key(rank: int) -> str:
    """Name the place in the store where a rank leaves its notes."""
    return f"lightning_linf/roll_call/{rank}"


def connect() -> Any:
    """Connect once more to the store by which the ranks have met; torch has no public name for it.

    Once more, as a connection serves one thread at a time, and the main thread may wait in its own.
    """
    store: Any = torch.distributed.distributed_c10d._get_default_store()
    try:
        return store.clone()
    except (AttributeError, RuntimeError):  # before torch 2.9, or of a kind that cannot
        return store


def have_met() -> bool:
    """Whether there are several ranks that could tell each other."""
    ranks = torch.distributed
    return ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1


def timeout_seconds() -> float:
    """After how long the default group gives a collective up; torch has no public name for it."""
    group = torch.distributed.distributed_c10d._get_default_group()
    backends = [group._get_backend(device) for device in group._device_types]
    options = [getattr(backend, "options", None) for backend in backends]
    default = torch.distributed.constants.default_pg_timeout
    return float(min(getattr(each, "_timeout", default).total_seconds() for each in options))


def _rank() -> int:
    return torch.distributed.get_rank()
