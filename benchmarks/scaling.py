"""How do time and memory grow with d, with probes, with blocks and with ranks?

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --quick     # three minutes on one core
    python benchmarks/scaling.py --device cuda                 # to d = 1e8, probes to 3e7

Each table varies one number. Below it: the exponent of a power law fitted by least squares to the
logarithms, with its standard error, and the exponent between the two largest sizes alone, at which
costs that do not grow weigh least. Seconds are medians of rounds; memory is the most that was in
use at once beyond the start, in vectors of d numbers of 4 bytes. Ranks are processes on this
machine, joined by gloo; each takes one batch, whatever their number, so that an exponent of 0 would
be a product that costs no more on many ranks. With more ranks than cores that cannot be.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from live_memory import peak_bytes
from power_law import fit_power
from report_lines import layer_loss, linear_layers, take_report
from scaling_ranks import seconds_by_ranks
from stopwatch import heading, kept_in_file, medians
from torch import Tensor, nn

from lightning_linf import Partition
from lightning_linf.functional import block_cauchy, cauchy, rotate
from lightning_linf.functional.heterogeneity import heterogeneity_update
from lightning_linf.optim import BlockwiseAdam

ROWS = 16  # of the batch of a report


class Sizes(NamedTuple):
    """What is varied."""

    dims: tuple[float, ...]  # of sums, rotations, steps and probes
    report_dims: tuple[float, ...]
    num_probes: tuple[int, ...]
    probes_dim: float  # at which the number of probes is varied
    blocks_dim: float  # at which the number of blocks is
    num_ranks: tuple[int, ...]
    rounds: int


SIZES = {
    "tiny": Sizes((1e3, 1e4), (1e3, 4e3), (4, 8), 1e3, 2**12, (1, 2), 1),
    "quick": Sizes((1e5, 1e6, 1e7), (1e5, 3e5, 1e6), (4, 8, 16, 32), 1e5, 2**20, (1, 2), 5),
    "full": Sizes(
        (1e5, 1e6, 1e7, 1e8), (1e5, 1e6, 1e7, 3e7), (4, 8, 16, 32, 64), 1e6, 2**24, (1, 2, 4), 9
    ),
}


def print_table(varied: str, rows: dict[float, dict[str, float]]) -> None:
    """Print a line for each size, and the exponents below."""
    names = list(next(iter(rows.values())))
    width = max(14, *(len(name) + 2 for name in names))
    print(f"{varied:>12s}" + "".join(f"{name:>{width}s}" for name in names))
    for size, values in rows.items():
        print(f"{int(size):12,d}" + "".join(f"{values[name]:{width}.4g}" for name in names))
    for name in names:
        values = [row[name] for row in rows.values()]
        if min(values) > 0:
            print(f"  {name} ~ {varied} ^ {fit_power(list(rows), values)}")
    print(flush=True)


def vectors(dim: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds of what is done once with a vector of d numbers."""
    x = torch.randn(dim, device=device)
    y = torch.empty_like(x)
    layer = nn.Linear(dim // 100, 100, bias=False, device=device)
    layer.weight.grad = torch.randn_like(layer.weight)
    actions: dict[str, Callable[[], object]] = {
        "copy": lambda: y.copy_(x),
        "Cauchy probe": lambda: cauchy(dim, seed=0, probe=0, device=device),
        "heterogeneity": lambda: heterogeneity_update([x]),
        "rotation": lambda: rotate(x, seed=0),
        "AdamW, fused": torch.optim.AdamW(layer.parameters(), fused=True).step,
        "BlockwiseAdam": BlockwiseAdam(layer.named_parameters(), lr=1e-6).step,
    }
    return {f"{name}, ms": 1e3 * s for name, s in medians(actions, device, rounds).items()}


def report(dim: float, num_probes: int, device: torch.device) -> dict[str, float]:
    """What a report of "coordinate" and "global" of two linear layers takes."""
    width = round((dim / 2) ** 0.5)
    module = linear_layers(width, device)
    batch = torch.randn(ROWS, width, device=device)
    taken = take_report(module, batch, layer_loss, num_probes)
    peak = peak_bytes(lambda: take_report(module, batch, layer_loss, num_probes), device)
    return {
        "report, s": taken.report.seconds,
        "products": taken.report.num_hvps,
        "a product, ms": 1e3 * taken.product,
        "beside products, s": taken.report.seconds * (1 - 1 / max(taken.per_product, 1.0)),
        "vectors": peak / (8 * width**2),
    }


def blocks(num_blocks: int, dim: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds of what is done by blocks, all of one size."""
    layer = nn.Linear(dim // num_blocks, num_blocks, bias=False, device=device)
    layer.weight.grad = torch.randn_like(layer.weight)
    partition = Partition.of(layer, "row")
    x: Tensor = torch.randn(dim, device=device)
    step = BlockwiseAdam(layer.named_parameters(), partition=partition, lr=1e-6).step
    actions: dict[str, Callable[[], object]] = {
        "BlockwiseAdam": step,
        "sum by blocks": lambda: partition.block_sum(x),
        "probe of blocks": lambda: block_cauchy(partition, seed=0, probe=0, like=x),
    }
    return {f"{name}, ms": 1e3 * s for name, s in medians(actions, device, rounds).items()}


def measure(sizes: Sizes, device: torch.device, only: Sequence[str]) -> None:
    """Print all tables."""
    if "d" in only:
        print("vectors")
        print_table("d", {d: vectors(int(d), device, sizes.rounds) for d in sizes.dims})
        print(f"report of coordinate and global, 4 probes, two layers, batch of {ROWS}")
        print_table("d", {d: report(d, 4, device) for d in sizes.report_dims})
    if "probes" in only:
        print(f"such a report, d = {sizes.probes_dim:,.0f}")
        rows = {float(n): report(sizes.probes_dim, n, device) for n in sizes.num_probes}
        print_table("probes", rows)
    if "blocks" in only:
        dim = int(sizes.blocks_dim)
        print(f"blocks of one size, d = {dim:,}")
        counts = [2**k for k in range(0, dim.bit_length() - 1, 4)]
        print_table("blocks", {float(b): blocks(b, dim, device, sizes.rounds) for b in counts})
    if "ranks" in only:
        print(f"one product, a batch on each rank, d = {sizes.probes_dim:,.0f}, on the CPU")
        width = round((sizes.probes_dim / 2) ** 0.5)
        found = seconds_by_ranks(sizes.num_ranks, width, sizes.rounds)
        print_table("ranks", {float(n): {"product, ms": 1e3 * s} for n, s in found.items()})


def main() -> None:
    """Run the command line."""
    every = ["d", "probes", "blocks", "ranks"]
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--quick", action="store_true", help="smaller, and fewer rounds")
    parser.add_argument("--tiny", action="store_true", help="to see that all works")
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--save", action="store_true", help="keep what is printed in results/")
    choices = parser.parse_args()
    size = "tiny" if choices.tiny else "quick" if choices.quick else "full"
    with kept_in_file("scaling", choices.device) if choices.save else nullcontext():
        heading(choices.device)
        measure(SIZES[size], choices.device, choices.only)


if __name__ == "__main__":
    main()
