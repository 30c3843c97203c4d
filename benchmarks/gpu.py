"""Run what needs a CUDA device to be shown within a short loan of one, and keep what came out.

    python benchmarks/gpu.py                           # tests and all targets, 9 minutes at most
    python benchmarks/gpu.py --only kernels all        # some of them
    python benchmarks/gpu.py --only rivals scaling     # others, one after the other

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
from typing import NamedTuple

import torch
from stopwatch import ROOT, heading, kept_in_file


class Part(NamedTuple):
    """A command of Python and what it may take."""

    arguments: list[str]
    limit: float  # seconds


PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-q"]
ON_CUDA = ["--device", "cuda"]
PARTS: dict[str, Part] = {
    "kernels": Part([*PYTEST, "tests/kernels"], 120),
    "tests": Part([*PYTEST, "-m", "gpu", "tests"], 180),
    "all": Part(["benchmarks/all.py", *ON_CUDA, "--quick", "--save"], 240),
    "all in full": Part(["benchmarks/all.py", *ON_CUDA, "--save"], 600),
    "everyday": Part([*PYTEST, "-n", "8", "tests"], 590),
    "rivals": Part(["benchmarks/rivals.py", *ON_CUDA, "--save"], 300),
    "scaling": Part(["benchmarks/scaling.py", *ON_CUDA, "--save", "--only", "d", "blocks"], 300),
    "overhead": Part(["benchmarks/overhead.py", "--accelerator", "gpu"], 240),
}
IN_A_LOAN = ("kernels", "tests", "all")


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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=IN_A_LOAN, metavar="PART")
    parser.add_argument("--list", action="store_true", help="show the parts and their limits")
    choices = parser.parse_args()
    if choices.list:
        heading()
        for name, part in PARTS.items():
            print(f"{name:12s} {part.limit:4.0f} s  python {' '.join(part.arguments)}")
        return
    if not torch.cuda.is_available():
        sys.exit(
            f"benchmarks/gpu.py: expected a CUDA device, got none that torch {torch.__version__} "
            "can use. Run it on a machine with a GPU and a CUDA build of torch."
        )
    device = torch.device("cuda")
    with kept_in_file("gpu", device, mode="a"):
        heading(device)
        outcomes = {name: run(PARTS[name]) for name in choices.only}
        for name, outcome in outcomes.items():
            print(f"# {name}: {outcome}")


if __name__ == "__main__":
    main()
