"""What does a product take of a rank's memory, with shards and with whole parameters?

    OMP_NUM_THREADS=1 python benchmarks/sharded_memory.py          # a minute, 1 GiB a process

A network of equal linear layers, each sharded by itself, on W processes of this machine joined by
gloo. Memory is the most that tensors had in use at once on a rank, from before the landscape is
entered to its end, in vectors of d numbers, beyond the module itself; the largest of all ranks.
Gathered and added up: whole parameters (d each) that a gradient, or a product after it, exchanges.
"""

import argparse
import tempfile
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from stopwatch import heading, kept_in_file, seconds_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils import _python_dispatch, _pytree

from lightning_linf.distributed.stretches import StretchExchange
from lightning_linf.probe import Landscape

ROWS = 4  # of the batch of a rank: the graph is small
CPU = torch.device("cpu")


class Case(NamedTuple):
    """What is measured."""

    num_ranks: int
    width: int
    num_layers: int
    whole_parameters: bool


class Found(NamedTuple):
    """Of one rank; exchanges for the gradient and for a product after it, in units of d."""

    peak: int
    seconds: float  # of a product
    gathered: list[float]
    added: list[float]


class Exchanges:
    """Count the entries of what ranks join and add up."""

    def __init__(self) -> None:
        self.joined = self.added = 0
        join, add_up = StretchExchange.join, StretchExchange.add_up

        def counted_join(exchange: StretchExchange, stretch: Tensor, size: int) -> Tensor:
            self.joined += size
            return join(exchange, stretch, size)

        def counted_add_up(exchange: StretchExchange, wholes: Tensor) -> Tensor:
            self.added += wholes.numel()
            return add_up(exchange, wholes)

        StretchExchange.join = counted_join  # type: ignore[method-assign]  # for this process
        StretchExchange.add_up = counted_add_up  # type: ignore[method-assign]


class Storages(_python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Count the bytes of the tensors that operations inside have made and that are in use.

    Not by the profiler, which misses what gloo's own threads release.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it has made."""
        before = {
            tensor.untyped_storage() for tensor in _pytree.tree_leaves(args) if is_plain(tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if is_plain(tensor) and (storage := tensor.untyped_storage()) not in before:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage.nbytes()).atexit = False

    def _free(self, num_bytes: int) -> None:
        self.alive -= num_bytes


def is_plain(value: Any) -> bool:
    """Tell whether a value is a tensor with memory of its own."""
    return type(value) in (Tensor, nn.Parameter)


def mean_square(module: nn.Module, x: Tensor) -> Tensor:
    """Give the loss."""
    output: Tensor = module(x)
    return output.square().mean()


def measure(case: Case) -> Found:
    """Run one case on new processes; the rank that takes most."""
    with tempfile.TemporaryDirectory() as folder:
        # Spawned processes would import torch again.
        torch.multiprocessing.start_processes(
            _run, (case, folder), nprocs=case.num_ranks, start_method="fork"
        )
        found = [Found(*torch.load(Path(folder) / f"{r}.pt")) for r in range(case.num_ranks)]
    return max(found)


def _run(rank: int, case: Case, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=case.num_ranks
    )
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (case.num_ranks,))
    layers = [nn.Linear(case.width, case.width, bias=False) for _ in range(case.num_layers)]
    module = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    x, exchanges = torch.randn(ROWS, case.width), Exchanges()
    d, counts, seconds = case.num_layers * case.width**2, [(0, 0)], [0.0]

    def probe() -> None:
        options = {"loss": mean_square, "whole_parameters": case.whole_parameters}
        with Landscape(module, [x], **options) as landscape:
            vector = landscape.gradient()
            counts.append((exchanges.joined, exchanges.added))
            seconds.append(seconds_of(lambda: landscape.hvp(vector), CPU))
            counts.append((exchanges.joined, exchanges.added))

    with Storages() as storages:
        probe()
    steps = [[(b - a) / d for a, b in pairwise(each)] for each in zip(*counts, strict=True)]
    torch.save((storages.peak, seconds[-1], *steps), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure all cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    with kept_in_file("sharded-memory", CPU):
        heading()
        d = options.layers * options.width**2
        print(f"\n{options.layers} layers of {options.width}^2, d = {d / 1e6:.1f}M, {ROWS} rows")
        print("parameters   W   peak/d   a product   gathered: gradient, product   added up")
        for whole in (False, True):
            for num_ranks in options.ranks:
                found = measure(Case(num_ranks, options.width, options.layers, whole))
                gathered, added = ("  ".join(f"{n:.2f}" for n in each) for each in found[2:])
                print(
                    f"{'whole' if whole else 'sharded':<10} {num_ranks:>3} "
                    f"{found.peak / (4 * d):>8.2f} {found.seconds:>9.2f} s"
                    f"{gathered:>23}{added:>24}"
                )


if __name__ == "__main__":
    main()
