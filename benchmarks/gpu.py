"""Run what needs a CUDA device to be shown within a short loan of one, and keep what came out.

    python benchmarks/gpu.py                             # tests and all targets, 14 minutes at most
    python benchmarks/gpu.py --only kernels tests        # its halves, where a command may take no
    python benchmarks/gpu.py --only heterogeneity all matmul-precision    # more than 10 minutes
    python benchmarks/gpu.py --only rivals scaling       # others, one after the other
    python benchmarks/gpu.py --tiny                      # on a CPU, to see that all works

Every part is a command with a limit in seconds (--list shows them); what it prints is shown and
added to benchmarks/results/gpu-DATE-DEVICE.txt line by line, so that a loan that ends early loses
nothing. A part that fails or takes too long is said to have, and the next one runs.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from stopwatch import ROOT, heading, kept_in_file


class Part(NamedTuple):
    """A command of Python and what it may take."""

    arguments: Sequence[str]
    limit: float  # seconds
    tiny: Sequence[str] = ()  # arguments of the same on a CPU, at a size that means nothing


PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-q"]
ON_CUDA = ["--device", "cuda"]
GPT2 = ["--width", "768", "--layers", "12", "--vocabulary", "50257"]
OTHERS = ["--without", "curvlinops", "hessian-eigenthings", "PyHessian"]  # to be installed first
PARTS: dict[str, Part] = {
    "kernels": Part(
        [*PYTEST, "tests/kernels"], 180, [*PYTEST, "tests/kernels/test_optimizers_compile.py"]
    ),
    "tests": Part(
        [*PYTEST, "-m", "gpu", "tests"], 180, [*PYTEST, "-m", "gpu", "tests/suite/test_gpu.py"]
    ),
    "heterogeneity": Part(
        ["benchmarks/heterogeneity.py", *ON_CUDA, *GPT2], 60,
        ["benchmarks/heterogeneity.py", "--width", "8", "--vocabulary", "100", "--rounds", "1"],
    ),
    "all": Part(
        ["benchmarks/all.py", *ON_CUDA, "--quick", "--save"], 240, ["benchmarks/all.py", "--tiny"]
    ),
    "matmul-precision": Part(
        ["benchmarks/matmul_precision.py", *ON_CUDA], 180,
        ["benchmarks/matmul_precision.py", "--model", "mlp", "--probes", "4"],
    ),
    "all-in-full": Part(
        ["benchmarks/all.py", *ON_CUDA, "--save"], 600,
        ["benchmarks/all.py", "--tiny", "--only", "probe"],
    ),
    "everyday": Part(
        [*PYTEST, "-n", "8", "tests"], 590, [*PYTEST, "tests/suite/test_layers.py"]
    ),
    "rivals": Part(
        ["benchmarks/rivals.py", *ON_CUDA, "--save"], 300,
        ["benchmarks/rivals.py", "--tiny", "--only", "products", "--rounds", "1", *OTHERS],
    ),
    "scaling": Part(
        ["benchmarks/scaling.py", *ON_CUDA, "--save", "--only", "d", "blocks"], 300,
        ["benchmarks/scaling.py", "--tiny", "--only", "d", "blocks"],
    ),
    "overhead": Part(
        ["benchmarks/overhead.py", "--accelerator", "gpu"], 240,
        ["benchmarks/overhead.py", "--steps", "48", "--rounds", "1", "--limits", "0.1"],
    ),
}  # fmt: skip
TINY_LIMIT = 600.0  # on a CPU, which may be busy
IN_A_LOAN = ("kernels", "tests", "heterogeneity", "all", "matmul-precision")


def run(part: Part) -> str:
    """Run a command in the root of the repository, pass on what it prints, and say how it ended."""
    print("# python", *part.arguments, flush=True)
    begin = time.perf_counter()
    is_too_long = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-u", *part.arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    ) as process:  # fmt: skip

        def stop() -> None:
            is_too_long.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(part.limit, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    outcome = f"longer than {part.limit:g} s" if is_too_long.is_set() else f"exit {code}"
    print(f"# {outcome}, after {time.perf_counter() - begin:.0f} s\n", flush=True)
    return outcome


def run_all(parts: dict[str, Part]) -> None:
    """Run commands one after the other, and say how each ended."""
    outcomes = {name: run(part) for name, part in parts.items()}
    for name, outcome in outcomes.items():
        print(f"# {name}: {outcome}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=IN_A_LOAN, metavar="PART")
    parser.add_argument("--list", action="store_true", help="show the parts and their limits")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to see that all works")
    choices = parser.parse_args()
    if choices.list:
        heading()
        for name, part in PARTS.items():
            print(f"{name:16s} {part.limit:4.0f} s  python {' '.join(part.arguments)}")
        return
    if choices.tiny:
        heading()
        parts = {name: PARTS[name] for name in choices.only}
        run_all({n: p._replace(arguments=p.tiny, limit=TINY_LIMIT) for n, p in parts.items()})
        return
    if not torch.cuda.is_available():
        sys.exit(
            f"benchmarks/gpu.py: expected a CUDA device, got none that torch {torch.__version__} "
            "can use. Run it on a machine with a GPU and a CUDA build of torch."
        )
    device = torch.device("cuda")
    with kept_in_file("gpu", device, mode="a"):
        heading(device)
        run_all({name: PARTS[name] for name in choices.only})


if __name__ == "__main__":
    main()
