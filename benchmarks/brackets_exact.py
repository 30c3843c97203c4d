"""How wrong are both ends of lambda_max and of N(coordinate), where the answer is known?

    python benchmarks/brackets_exact.py                     # about 6 minutes on one core
    python benchmarks/brackets_exact.py --models conv       # one of them
    python benchmarks/brackets_exact.py --cache DIR         # keeps or reads the Hessians

Small networks at their start and trained, whose Hessians are formed row by row
(`benchmarks/hessians.py`); and spectra that are made to mislead: close eigenvalues of either sign,
a tiny gap, one eigenvalue far out in which a start may have little mass. An eigenvalue is compared
with the dense one. N(coordinate) is compared with the best of many ascents, so an upper end of 1.3
may be loose by less than 30 %. A bound holds for all but 0.25 % of seeds, whatever the dimension;
what it costs grows with log d, so each network is also measured as if it had `--like` times as many
parameters: the start's mass is then taken to be that of so many.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import hessians
import torch
from stopwatch import heading
from torch import Tensor

from lightning_linf.functional import (
    LabelledBlocks,
    cauchy,
    dual_direction,
    lambda_max,
    operator_norm,
)
from lightning_linf.functional.random import normal

lanczos_module = import_module("lightning_linf.functional.lambda_max")

BULK = torch.linspace(-0.3, 0.3, 3000, dtype=torch.float64)
SPECTRA = {
    "one far out": [1.0],
    "a tiny gap": [1.0, 0.9999],
    "both signs, 3 % apart": [1.0, -0.97],
    "a cluster": [1.0, 0.985, 0.97, 0.955, 0.94],
    "a slope of either sign": [(-1) ** k * (1 - 0.02 * k) for k in range(20)],
}


@contextmanager
def as_if_larger(factor: float) -> Iterator[None]:
    """Take the least mass of a start to be that of ``factor`` times as many dimensions."""
    least_mass = lanczos_module.least_mass
    with patch.object(
        lanczos_module, "least_mass", lambda dim, failure: least_mass(int(factor * dim), failure)
    ):
        yield


def of_spectra(num_seeds: int) -> None:
    """Print how often and by how much lambda_max misses the largest of known eigenvalues."""
    print("\nspectrum                 products   below the truth   largest residual")
    for name, top in SPECTRA.items():
        values = BULK.clone()
        values[: len(top)] = torch.tensor(top, dtype=torch.float64)
        found = [
            lambda_max(values.mul, normal(len(values), seed=s, dtype=torch.float64), max_hvps=32)
            for s in range(num_seeds)
        ]
        missed = sum(one.value + one.residual < 1 - 1e-9 for one in found)
        products = sum(one.num_hvps for one in found) / num_seeds
        worst = max(one.residual / one.value for one in found)
        print(f"{name:23s} {products:9.1f} {missed:8d} of {num_seeds:4d} {worst:18.3f}")


def hessian_of(name: str, is_trained: bool, cache: Path | None) -> Tensor:
    """Form the Hessian of a small network in float32, (d, d), or read it from the cache."""
    state = "trained" if is_trained else "start"
    file = None if cache is None else cache / f"{name}-{state}-matrix.pt"
    if file is not None and file.exists():
        kept: Tensor = torch.load(file)
        return kept
    with ExitStack() as stack:
        if not is_trained:
            untouched = patch.object(hessians, "_train", lambda optimizer, loss, num_steps: None)
            stack.enter_context(untouched)
        matrix = hessians.make(name).matrix.float()
    if file is not None:
        torch.save(matrix, file)
    return matrix


def of_network(matrix: Tensor, budgets: list[int], num_seeds: int) -> None:
    """Print both ends for one network, over the exact eigenvalue and the best of many ascents."""
    dim = len(matrix)
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2)) * dim
    coordinates = LabelledBlocks(torch.arange(dim), "coordinate")
    whole = LabelledBlocks(torch.zeros(dim, dtype=torch.int64), "global")
    best = max(_ascent(matrix, coordinates, seed) for seed in range(8))
    for budget in budgets:
        rows: dict[str, list[tuple[float, float, float]]] = {"global": [], "coordinate": []}
        for seed in range(num_seeds):
            coarse = operator_norm(
                matrix.mv, normal(dim, seed=seed), whole, max_hvps=budget, seed=seed
            )
            rows["global"].append((coarse.lower / exact, coarse.upper / exact, coarse.num_hvps))
            logs = torch.stack(
                [(matrix @ cauchy(dim, seed=seed, probe=k)).abs().log() for k in range(16)]
            )
            fine = operator_norm(
                matrix.mv, coarse.direction, coordinates, shares=logs.mean(dim=0).exp(),
                max_hvps=budget, seed=seed,
            )  # fmt: skip
            rows["coordinate"].append((fine.lower / best, fine.upper / best, fine.num_hvps))
        for kind, found in rows.items():
            lower, upper, products = torch.tensor(found).mean(dim=0).tolist()
            least, most = min(row[0] for row in found), max(row[1] for row in found)
            print(
                f"  {kind:10s} of {budget:3d} products {products:5.1f} "
                f"lower {lower:.4f} (least {least:.4f})  upper {upper:.3f} (most {most:.3f})",
                flush=True,
            )


def _ascent(matrix: Tensor, blocks: LabelledBlocks, seed: int) -> float:
    direction = dual_direction(normal(len(matrix), seed=seed), blocks)
    for _ in range(60):
        direction = dual_direction(matrix @ direction, blocks)
    return float((matrix @ direction).abs().sum())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["conv", "contrastive"], metavar="NAME")
    parser.add_argument("--hvps", type=int, nargs="+", default=[16, 24, 32, 40], metavar="N")
    parser.add_argument("--seeds", type=int, default=6, help="for each network")
    parser.add_argument("--spectrum_seeds", type=int, default=400)
    parser.add_argument("--like", type=float, default=1e4, help="as if of so many times larger d")
    parser.add_argument("--cache", type=Path, help="a folder that keeps or gives the Hessians")
    choices = parser.parse_args()
    heading()
    of_spectra(choices.spectrum_seeds)
    for name in choices.models:
        for is_trained in (False, True):
            matrix = hessian_of(name, is_trained, choices.cache)
            for factor in (1.0, choices.like):
                state = "trained" if is_trained else "at its start"
                print(f"\n{name} {state}, as if of {factor:g} times as many parameters")
                with as_if_larger(factor):
                    of_network(matrix, choices.hvps, choices.seeds)


if __name__ == "__main__":
    main()
