"""What does a rotated step of sharded parameters take of each rank: time, traffic and memory?

    OMP_NUM_THREADS=1 python benchmarks/sharded_rotation.py              # a minute on two CPU cores
    OMP_NUM_THREADS=1 python benchmarks/sharded_rotation.py --width 512 --ranks 1 2

Two linear layers are sharded by fully_shard over processes of this machine (gloo). SGD makes a step
in coordinates that are rotated as one vector: three products with the map. "exchanged" is what the
package does, "gathered" what it does with maps that it knows nothing of: every rank gathers whole
vectors and computes whole products. Sent are the numbers of a step that go from one rank to other
ones. Memory is what is in use at once beyond what is between steps (on CPUs up to 10 MiB of memory
to work in are kept), in MiB and in shards, vectors of d / W numbers. With more processes than
cores, seconds say little.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from gloo_ranks import on_ranks
from live_memory import peak_bytes
from report_lines import linear_layers
from stopwatch import heading, seconds_of
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_linf import Rotation
from lightning_linf.optim import Reparameterized
from lightning_linf.reparam import BoundReparameterization, Reparameterization

DEVICE = torch.device("cpu")


class Taken(NamedTuple):
    """What a step takes of the rank that it takes most of."""

    seconds: float
    numbers_sent: float
    peak_bytes: float


@dataclass(frozen=True)
class AnyMap(Reparameterization):
    """A rotation that does not tell of itself that it is one."""

    only: str | None = None

    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        return BoundAnyMap(Rotation().bind(shapes, stream=stream))


@dataclass(frozen=True)
class BoundAnyMap(BoundReparameterization):
    """A bound map that leaves to others how it is computed on shards."""

    bound: BoundReparameterization

    @property
    def num_params(self) -> int:  # type: ignore[override]  # that of the map
        """Number of parameters d."""
        return self.bound.num_params

    def inverse(self) -> "BoundAnyMap":
        """Invert the map."""
        return BoundAnyMap(self.bound.inverse())

    def _multiply(self, vector: Tensor) -> Tensor:
        return self.bound.apply_(vector)

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self.bound.apply_transpose_(vector)

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self.bound.apply_transpose_squared(vector)


FORMS: dict[str, Reparameterization] = {"exchanged": Rotation(), "gathered": AnyMap()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--width", type=int, default=1411, help="d is twice its square")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5, help="medians are over as many")
    choices = parser.parse_args()
    heading()
    dim = 2 * choices.width**2
    print(f"d = {dim:,d}, float32, strength 1")
    print(" W   form        step, ms   sent, MiB   sent, shards   peak, MiB   peak, shards")
    for num_ranks in choices.ranks:
        for form, taken in measure(num_ranks, choices.width, choices.rounds).items():
            shard = dim / num_ranks
            print(
                f"{num_ranks:2d}   {form:9s} {1e3 * taken.seconds:10.0f}"
                f" {4 * taken.numbers_sent / 2**20:11.1f} {taken.numbers_sent / shard:14.2f}"
                f" {taken.peak_bytes / 2**20:11.1f} {taken.peak_bytes / 4 / shard:14.2f}",
                flush=True,
            )


def measure(num_ranks: int, width: int, rounds: int) -> dict[str, Taken]:
    """Measure both forms on some processes."""
    found = on_ranks(num_ranks, _measure_forms, width, rounds)[0]
    return {form: Taken(*numbers) for form, numbers in found.items()}


def _measure_forms(rank: int, width: int, rounds: int) -> dict[str, list[float]]:
    found = {}
    for form, reparameterization in FORMS.items():
        taken = torch.tensor(_measure(rank, reparameterization, width, rounds))
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        found[form] = taken.tolist()
    return found


def _measure(rank: int, reparameterization: Reparameterization, width: int, rounds: int) -> Taken:
    module = linear_layers(width, DEVICE)
    fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = Reparameterized(
        module.parameters(), lambda p: torch.optim.SGD(p, lr=1e-3), reparameterization
    )
    for p in module.parameters():
        p.grad = p.detach().clone()
    seconds = [seconds_of(optimizer.step, DEVICE) for _ in range(rounds + 1)]
    with _releasing_here():
        peak = peak_bytes(optimizer.step, DEVICE)
    return Taken(statistics.median(seconds[1:]), _numbers_sent(rank, optimizer), peak)


@contextlib.contextmanager
def _releasing_here() -> Iterator[None]:
    """Let an exchange end when gloo's threads have released what was exchanged.

    What they free, the profiler would miss.
    """
    exchange = dist.all_to_all_single

    def waiting(output: Tensor, tensor: Tensor, *counts: list[int], **options: object) -> None:
        before = [output._use_count(), tensor._use_count()]
        exchange(output, tensor, *counts, **options)
        while output._use_count() > before[0] or tensor._use_count() > before[1]:
            time.sleep(1e-4)

    dist.all_to_all_single = waiting
    try:
        yield
    finally:
        dist.all_to_all_single = exchange


def _numbers_sent(rank: int, optimizer: Reparameterized) -> int:
    sent = 0
    send = dist.all_to_all_single

    def counted(
        output: Tensor, tensor: Tensor, received: list[int], counts: list[int], **options: object
    ) -> None:
        nonlocal sent
        sent += sum(counts) - counts[rank]
        send(output, tensor, received, counts, **options)

    dist.all_to_all_single = counted
    optimizer.step()
    dist.all_to_all_single = send
    return sent


if __name__ == "__main__":
    main()
