"""How far apart are both ends of the adaptive smoothness, and how wrong is either?

    python benchmarks/adaptive_smoothness.py                  # about 4 minutes on one core
    python benchmarks/adaptive_smoothness.py --models graph   # one of them

Small trained networks, whose Hessians are formed row by row (`benchmarks/hessians.py`). The exact
value is not known: it is at least what an ascent of many columns and products reaches, and at most
the best certificate for the weights that this ascent leads to, whose eigenvalue is computed from
all entries. The table says how far these two are apart, and gives both ends over the former. Shares
are what a report has: of "coordinate" estimates from 16 Cauchy probes, of other partitions the
exact ones times random errors of 30 %. From coarse to fine, each starts at the direction of the one
before, as in a report.
"""

import argparse

import hessians
import torch
from stopwatch import heading
from torch import Tensor

from lightning_linf.functional import LabelledBlocks, adaptive_ascent, cauchy, operator_norm
from lightning_linf.functional.certificate import floored, stationary_shares, to_scale
from lightning_linf.functional.random import normal

REFERENCE_COLUMNS = 10
REFERENCE_HVPS = 20_000
HEADER = (
    "partition     budget  taken known within    N lower    lower    upper  upper/lower  at most"
)


def partitions_of(hessian: hessians.Hessian) -> list[LabelledBlocks]:
    """Make the partitions of a network, from coarse to fine."""
    dim = len(hessian.matrix)
    return [
        LabelledBlocks(torch.zeros(dim, dtype=torch.int64), "global"),
        *(LabelledBlocks(hessian.blocks[name], name) for name in ("tensor", "row")),
        LabelledBlocks(torch.arange(dim), "coordinate"),
    ]


def exact_ends(matrix: Tensor, blocks: LabelledBlocks) -> tuple[float, float]:
    """Bound the adaptive smoothness from both sides with all entries of the matrix."""
    start = [
        normal(len(matrix), seed=k, dtype=torch.float64, device="cpu")
        for k in range(min(REFERENCE_COLUMNS, 2 * blocks.num_blocks))
    ]
    ascent = adaptive_ascent(matrix.mv, start, blocks, max_hvps=REFERENCE_HVPS, tol=1e-7)
    shares = floored(stationary_shares(ascent.products, blocks), blocks)
    scale = blocks.expand(to_scale(shares, blocks))
    return ascent.value, float(torch.linalg.matrix_norm(scale[:, None] * matrix * scale, 2))


def given_shares(matrix: Tensor, blocks: LabelledBlocks, seed: int) -> Tensor | None:
    """Estimate how much the rows of each block add, as well as a report does. Shape: (B,)."""
    dim = len(matrix)
    if blocks.name == "global":
        return None
    if blocks.name == "coordinate":
        probes = [cauchy(dim, seed=seed, probe=k, dtype=torch.float64) for k in range(16)]
        return torch.stack([(matrix @ v).abs().log() for v in probes]).mean(dim=0).exp()
    roots = blocks.sizes(matrix).sqrt()
    rows = blocks.block_sum(matrix.square()).sqrt() @ roots
    rows = rows * (0.3 * normal(dim, seed=seed, dtype=torch.float64)).exp()
    return roots * blocks.block_sum(rows.square()).sqrt()


def measure(hessian: hessians.Hessian, budgets: list[int], num_seeds: int) -> None:
    """Print a line for each partition and budget."""
    matrix, partitions = hessian.matrix, partitions_of(hessian)
    ends = {blocks.name: exact_ends(matrix, blocks) for blocks in partitions[1:]}
    for budget in budgets:
        found: dict[str, list[list[float]]] = {blocks.name: [] for blocks in partitions}
        for seed in range(num_seeds):
            start = normal(len(matrix), seed=seed, dtype=torch.float64)
            for blocks in partitions:
                shares = given_shares(matrix, blocks, seed)
                norm = operator_norm(
                    matrix.mv, start, blocks, shares=shares, max_hvps=budget, seed=seed
                )
                start = norm.direction
                values = [norm.lower, norm.adaptive_lower, norm.upper, norm.num_hvps]
                found[blocks.name].append(values)
        for name, (least, most) in ends.items():
            rows = torch.tensor(found[name], dtype=torch.float64)
            rows[:, :3] /= least
            lower_norm, lower, upper, products = rows.mean(dim=0).tolist()
            gaps = rows[:, 2] / rows[:, 1]
            print(
                f"{name:10s} {budget:9d} {products:6.1f} {most / least - 1:12.2%} "
                f"{lower_norm:10.3f} {lower:8.3f} {upper:8.3f} {gaps.mean():12.3f} "
                f"{gaps.max():8.3f}",
                flush=True,
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    default = ["graph", "factorisation", "conv", "contrastive"]
    parser.add_argument("--models", nargs="*", default=default, metavar="NAME")
    parser.add_argument("--hvps", type=int, nargs="+", default=[32, 64], metavar="N")
    parser.add_argument("--seeds", type=int, default=4, help="for each network")
    choices = parser.parse_args()
    heading()
    for name in choices.models:
        hessian = hessians.make(name)
        print(HEADER)
        measure(hessian, choices.hvps, choices.seeds)


if __name__ == "__main__":
    main()
