"""How far apart are the ends of the smoothness of a partition, given the number of products?

    python benchmarks/brackets.py                 # about 10 minutes on one core

A GPT-2 of 370,944 parameters is trained as in `recipes/gpt2.py`. For each partition: both ends of
the operator norm N(Phi) by `operator_norm` against its budget of Hessian-vector products, and the
bound of H(Phi) by `block_smoothness`, which is what a bracket without certificates would end at.
Everything over d, the number of parameters.
"""

import argparse
import time

import torch
from stopwatch import heading
from torch import Tensor
from trained_gpt2 import token_loss, trained_gpt2

from lightning_linf.functional import (
    block_cauchy,
    block_smoothness,
    dual_direction,
    operator_norm,
)
from lightning_linf.probe import Landscape
from lightning_linf.probe.partitions import choose_partitions

NAMES = ("coordinate", "row", "head", "tensor", "global")
STEPS = 400


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--hvps", type=int, nargs="+", default=[8, 16, 32, 64, 128], metavar="N")
    parser.add_argument("--probes", type=int, default=16, help="for the bound of H(Phi)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    choices = parser.parse_args()
    heading()
    module, batch, kept = trained_gpt2([choices.steps])
    module.load_state_dict(kept[choices.steps])
    partitions = choose_partitions(module, NAMES)
    with Landscape(module, [batch], loss=token_loss) as landscape:
        d = landscape.parameters.num_params
        gradient = landscape.gradient()
        begin = time.perf_counter()
        landscape.hvp(gradient)
        print(
            f"d = {d:,}, loss {landscape.loss():.3f} after {choices.steps} steps, "
            f"{time.perf_counter() - begin:.2f} s a product"
        )
        print("partition   blocks   products   lower   upper   upper/lower   bound of H   /lower")
        for partition in partitions:
            parts: Tensor | None = None
            bound = ""
            if partition.num_blocks > 1:
                products = torch.stack(
                    [
                        landscape.hvp(block_cauchy(partition, seed=choices.seed, probe=k,
                                                   like=gradient))
                        for k in range(choices.probes)
                    ]
                )  # fmt: skip
                estimate = block_smoothness(
                    products, partition, seed=choices.seed, sizes=landscape.parameters.sizes
                )
                parts, bound = estimate.block_parts, float(estimate.value)
            start = dual_direction(gradient, partition)
            for budget in choices.hvps:
                result = operator_norm(
                    landscape.hvp, start, partition, shares=parts, max_hvps=budget,
                    seed=choices.seed,
                )  # fmt: skip
                last = f"{bound / d:13.2f} {bound / result.lower:8.2f}" if bound else ""
                print(
                    f"{partition.name:10s} {partition.num_blocks:7,d} {result.num_hvps:10d} "
                    f"{result.lower / d:7.2f} {result.upper / d:7.2f} "
                    f"{result.upper / result.lower:13.3f} {last}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
