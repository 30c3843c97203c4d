"""How long do the counts and sums over all gradients take, in 2-norms of one vector of all entries?

    OMP_NUM_THREADS=1 python benchmarks/heterogeneity.py
    python benchmarks/heterogeneity.py --device cuda --width 768 --layers 12 --vocabulary 50257

The gradients have the shapes of a GPT-2's parameters and are drawn at random, each at a scale of
its own, with rows of zeros for tokens that a batch does not have. Norms, the plain form and, on a
GPU with Triton, the kernel take turns, so that what else the machine does slows all. The last line
is the time that statistics of each tensor and of all together take from the counts and sums.
"""

import argparse
from collections.abc import Callable
from unittest import mock

import torch
from stopwatch import heading, medians
from torch import Tensor

from lightning_linf.functional import heterogeneity_sums
from lightning_linf.functional.heterogeneity import each_and_whole
from lightning_linf.functional.heterogeneity_sums import heterogeneity_update
from lightning_linf.kernels import runs_kernels

DTYPES = ("float32", "bfloat16", "float16", "float64")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7, help="medians are over as many")
    choices = parser.parse_args()
    heading(choices.device)
    gradients = draw(choices)
    vector = torch.cat([gradient.reshape(-1) for gradient in gradients])
    sums = heterogeneity_update(gradients)
    actions: dict[str, Callable[[], object]] = {
        "norm": lambda: torch.linalg.vector_norm(vector),
        "plain": lambda: plain(gradients),
    }
    if runs_kernels(choices.device):
        actions["kernel"] = lambda: heterogeneity_update(gradients)
    actions["statistics"] = lambda: each_and_whole(sums)
    seconds = medians(actions, choices.device, choices.rounds)
    print(f"{len(vector):,} entries of {choices.dtype} in {len(gradients)} tensors")
    print("                  ms    norms")
    for name, median in seconds.items():
        print(f"{name:10s} {1e3 * median:9.2f} {median / seconds['norm']:8.1f}", flush=True)


def plain(gradients: list[Tensor]) -> object:
    """Count and sum without the kernel."""
    with mock.patch.object(heterogeneity_sums, "runs_kernels", return_value=False):
        return heterogeneity_update(gradients)


def draw(choices: argparse.Namespace) -> list[Tensor]:
    """Draw gradients with the shapes of a GPT-2's parameters."""
    width, tokens = choices.width, choices.vocabulary
    layer = [(width,)] * 4 + [(width, 3 * width), (3 * width,), (width, width), (width,)]
    layer += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    shapes = [(tokens, width), (1024, width), *(layer * choices.layers), (width,), (width,)]
    torch.manual_seed(0)
    dtype = getattr(torch, choices.dtype)
    drawn = [torch.randn(s, device=choices.device).mul_(1e-3 * torch.rand(())) for s in shapes]
    drawn[0][torch.rand(tokens) < 0.3] = 0.0  # tokens that the batch does not have
    return [gradient.to(dtype) for gradient in drawn]


if __name__ == "__main__":
    main()
