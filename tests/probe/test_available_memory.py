"""What is said to be free on a device."""

import os

import pytest
import torch

from lightning_linf.probe import available_memory as module
from lightning_linf.probe.available_memory import available_memory


def test_available_is_what_the_driver_and_the_allocator_have_left(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert available_memory(torch.device("cuda", 0)) == 140
    assert available_memory(torch.device("meta")) is None


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="reads Linux's /proc")
def test_available_on_the_cpu_is_part_of_its_memory():
    in_all = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory(torch.device("cpu")) <= in_all


CPU = torch.device("cpu")
GIB = 2**30


class Linux:
    """A machine with 64 GiB available, and groups of processes with limits."""

    def __init__(self, folder, monkeypatch):
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable: {64 * 2**20} kB\n")
        monkeypatch.setattr(module, "_PROC", self.proc)
        monkeypatch.setattr(module, "_GROUPS", self.groups)

    def member(self, *lines):
        (self.proc / "self" / "cgroup").write_text("\n".join(lines) + "\n")

    def group(self, name, **files):
        folder = self.groups / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file.replace("memory_", "memory.", 1)).write_text(f"{text}\n")


@pytest.fixture
def linux(tmp_path, monkeypatch):
    return Linux(tmp_path, monkeypatch)


def test_without_groups_it_is_what_the_machine_has(linux):
    assert available_memory(CPU) == 64 * GIB
    linux.member("0::/user.slice", "3:cpuset:/user.slice")  # and no files of groups
    assert available_memory(CPU) == 64 * GIB


@pytest.mark.parametrize("limited", ["", "job", "job/step"])
def test_least_of_a_group_and_those_above_it_counts(linux, limited):
    linux.member("0::/job/step")
    for name in ("", "job", "job/step"):
        limit = 8 * GIB if name == limited else "max"
        stat = f"anon 3\nactive_file {GIB}\ninactive_file {GIB // 2}"
        linux.group(name, memory_max=limit, memory_current=5 * GIB, memory_stat=stat)
    assert available_memory(CPU) == 8 * GIB - 5 * GIB + GIB + GIB // 2


def test_older_groups(linux):
    # A container sees the names of the machine, and at the top its own group.
    linux.member("4:cpu,memory:/docker/1a2b", "2:cpuset:/docker/1a2b", "0::/docker/1a2b")
    stat = f"active_file 7\ntotal_active_file {GIB}\ntotal_inactive_file 0"
    for limit, left in ((6 * GIB, 5 * GIB), (2**63 - 4096, 64 * GIB), (GIB // 2, 0)):
        linux.group(
            "memory", memory_limit_in_bytes=limit, memory_usage_in_bytes=2 * GIB, memory_stat=stat
        )
        assert available_memory(CPU) == left


def test_more_than_a_limit_leaves_the_machine_as_the_bound(linux):
    linux.member("0::/")
    linux.group("", memory_max=100 * GIB, memory_current=GIB, memory_stat="anon 1")
    assert available_memory(CPU) == 64 * GIB
