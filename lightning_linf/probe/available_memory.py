"""How much memory can still be allocated on a device."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class _Version(NamedTuple):
    """What a version of Linux's control groups calls a group's limit, use and file caches."""

    limit: str
    usage: str
    caches: tuple[str, str]


_V1 = _Version(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_V2 = _Version("memory.max", "memory.current", ("active_file", "inactive_file"))


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device, or None where no one tells.

    CUDA: what the driver has free, and what torch's allocator holds and does not use. CPU: what
    Linux calls available, or what is left of the limits of the process's control groups if that is
    less, as in a container or a job of a batch system, which end a process that takes more.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu" and (_PROC / "meminfo").exists():
        return min([_left_of_machine(), *_left_of_groups()])
    return None


def _left_of_machine() -> int:
    lines = (_PROC / "meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _left_of_groups() -> Iterator[int]:
    """Bytes left in each group that has a limit, and holds the process or one of its groups."""
    members = _PROC / "self" / "cgroup"
    for line in members.read_text().splitlines() if members.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, version = _GROUPS, _V2
        elif "memory" in controllers.split(","):
            top, version = _GROUPS / "memory", _V1
        else:
            continue
        group = top / path.lstrip("/")  # of the machine: in a container only the top may be there
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _left_of(folder, version)


def _left_of(group: Path, version: _Version) -> Iterator[int]:
    try:
        limit = (group / version.limit).read_text().strip()
        usage = int((group / version.usage).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:  # no such group here, or not to be read
        return
    if limit == "max":
        return
    fields = dict(line.split() for line in lines)
    caches = sum(int(fields.get(name, 0)) for name in version.caches)  # given up when needed
    yield max(0, int(limit) - usage + caches)
