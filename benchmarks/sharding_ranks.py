"""A probe of a network that `fully_shard` has divided among ranks, processes of this machine."""

import ctypes
import gc
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import traffic
from gloo_ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lightning_linf.probe import Landscape, measure_landscape
from lightning_linf.probe.partitions import choose_partitions


class Case(NamedTuple):
    """What is measured: square layers, each with a tanh, and some samples on every rank."""

    num_ranks: int
    num_layers: int
    width: int
    rows: int  # of the batch of a rank
    num_probes: int
    max_hvps: int | None

    @property
    def num_params(self) -> int:
        """Number d of parameters."""
        return self.num_layers * self.width**2

    @property
    def largest(self) -> int:
        """Number of parameters of the largest module that is gathered at a time."""
        return self.width**2


class Found(NamedTuple):
    """Of the rank that takes most, in bytes beyond what it held before the probe; and seconds."""

    resident: int  # at most while the probe ran
    product: int  # sent in one product
    entering: int  # sent before the first evaluation
    probe: int  # sent in all
    num_hvps: int
    seconds: float


def measure(case: Case) -> Found:
    """Run one probe on ``case.num_ranks`` new processes."""
    # Spawned ones would import torch again.
    found = on_ranks(case.num_ranks, _probe_twice, case, start_method="fork")
    return Found(*(max(column) for column in zip(*found, strict=True)))


def _probe_twice(rank: int, case: Case) -> tuple[float, ...]:
    _return_freed_memory()
    _probe(rank, case._replace(width=8, rows=2))  # what is imported and started at first use
    return tuple(_probe(rank, case))


def _probe(rank: int, case: Case) -> Found:
    def sum_over_ranks(tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    module = make_network(case)
    generator = torch.Generator().manual_seed(rank)
    batch = torch.randn(case.rows, case.width, generator=generator)
    partitions = choose_partitions(module, [])
    gc.collect()
    before = _start_peak()
    begin = time.perf_counter()
    landscape = Landscape(module, [batch], loss=square_loss, reduce=sum_over_ranks)
    with traffic.Traffic(case.num_ranks) as sent, landscape:
        entering = sent.total
        report = measure_landscape(
            landscape, partitions, num_probes=case.num_probes, max_hvps=case.max_hvps
        )
        resident, seconds = _peak() - before, time.perf_counter() - begin
        in_probe, vector = sent.total, landscape.gradient()
        at_product = sent.total
        landscape.hvp(vector)
        product = sent.total - at_product
    return Found(resident, product, entering, in_probe, report.num_hvps, seconds)


def make_network(case: Case) -> nn.Module:
    """Make the network, sharded layer by layer; all ranks draw the same weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(case.num_layers):
        layer = nn.Linear(case.width, case.width, bias=False)
        layers += [fully_shard(layer), nn.Tanh()]  # at once: no rank ever holds all of them whole
    return fully_shard(nn.Sequential(*layers))


def square_loss(module: nn.Module, batch: Tensor) -> Tensor:
    """Mean square of what the network gives; scaled, so that its products are not tiny."""
    result: Tensor = 1e3 * module(batch).square().mean()
    return result


def _return_freed_memory() -> None:
    """Let glibc give blocks of 64 KiB and more back to the system as soon as they are freed."""
    libc: Any = ctypes.CDLL(None)
    libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD, which would else grow with what is freed


def _start_peak() -> int:
    """Let Linux forget the peak so far; give what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
