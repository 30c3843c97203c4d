"""How long does a random rotation of a vector take, in memory copies of the vector?

    OMP_NUM_THREADS=1 python benchmarks/rotation.py               # half a minute, 2 GiB
    OMP_NUM_THREADS=2 python benchmarks/rotation.py --sizes 1e6 1e7
    python benchmarks/rotation.py --device cuda

Copies and rotations take turns, so that what else the machine does slows both; but threads that
wait for a busy core slow the rotation far more. Unless asked for others, the numbers of coordinates
are 1e6, 1e7, and 124,439,808, that of GPT-2.
"""

import argparse
from collections.abc import Callable

import torch
from stopwatch import heading, medians

from lightning_linf.functional.rotation import rotate, rotation_windows

SIZES = (1e6, 1e7, 124_439_808)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, metavar="D")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over as many")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    choices = parser.parse_args()
    heading(choices.device)
    print(f"float32, strength {choices.strength}")
    print("          d   copy, ms   rotation, ms   copies   windows   copies for one window")
    for dim in map(int, choices.sizes):
        x = torch.randn(dim, device=choices.device)
        y = torch.empty_like(x)
        actions: dict[str, Callable[[], object]] = {
            "copy": lambda x=x, y=y: y.copy_(x),
            "rotation": lambda x=x: rotate(x, seed=0, strength=choices.strength),
        }
        copy, rotation = medians(actions, choices.device, choices.rounds).values()
        windows = rotation_windows(dim)
        share = sum(2 * window.half for window in windows) / dim  # of the vector, in all windows
        print(
            f"{dim:11,d} {1e3 * copy:10.2f} {1e3 * rotation:14.1f} {rotation / copy:8.1f} "
            f"{len(windows):9d} {rotation / copy / share:23.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
