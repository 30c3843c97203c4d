"""Hessian-vector products and optimizer steps of other packages beside ours, in one run.

    python benchmarks/rivals.py                      # five minutes, most of it installing
    python benchmarks/rivals.py --device cuda --save

Each package gets an environment of its own under build/rivals, which sees the packages of this one
(torch among them, which thus is the same for all) and holds the package itself, installed without
its dependencies where those would replace torch. All processes run at once and take turns, round by
round, so that what else the machine does falls on all alike. Products: on a GPT-2, over one float32
gradient of the same batch; the error is that of the product in the 2-norm, against double backward
in float64. Steps: over those of AdamW (fused). A package that cannot be installed, or fails, is
said to have.
"""

import argparse
import contextlib
import json
import math
import os
import select
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from rival_worker import PRODUCTS, STEPS
from stopwatch import ROOT, heading, kept_in_file

# What is installed for each; the rest of what they import is here already.
REQUIREMENTS: dict[str, list[str]] = {
    "curvlinops": [
        "curvlinops-for-pytorch==3.0.1", "backpack-for-pytorch", "einops", "einconv",
        "linear_operator", "opt-einsum",
    ],
    "hessian-eigenthings": ["hessian-eigenthings==1.0.0a5"],
    "PyHessian": ["pyhessian==0.1"],
    "Adam-mini": ["adam-mini==1.1.1"],
}  # fmt: skip
ENVIRONMENTS = ROOT / "build" / "rivals"


class Failed(Exception):
    """A competitor could not be installed, or has failed."""


def environment(name: str, limit: float) -> str:
    """Make the environment of a package unless it is there; give its Python."""
    if name not in REQUIREMENTS:
        return sys.executable
    folder = ENVIRONMENTS / name
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text() == " ".join(REQUIREMENTS[name]):
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], limit)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = sysconfig.get_paths()["purelib"]
    (packages / "beside.pth").write_text(here + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    _run([*pip, *REQUIREMENTS[name]], limit)
    done.write_text(" ".join(REQUIREMENTS[name]))
    return str(python)


def _run(command: list[str], limit: float) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.CalledProcessError as error:
        raise Failed(f"not installed: {error.stderr.strip().splitlines()[-1:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not installed within {limit:g} s") from error


class Competitor:
    """A process that runs one action when told to."""

    def __init__(self, name: str, device: str, size: str, limit: float) -> None:
        self.name, self._limit = name, limit
        python = environment(name, limit)
        worker = ROOT / "benchmarks" / "rival_worker.py"
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, str(worker), name, device, size],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def start(self) -> None:
        """Wait until it is ready."""
        told = self._answer()
        self.label: str = told["label"]
        if told["torch"] != torch.__version__:
            raise Failed(f"runs on torch {told['torch']} instead of {torch.__version__}")

    def do(self, command: str) -> Any:
        """Send a command, and wait for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], self._limit)
        if not ready:
            raise Failed(f"gave no answer within {self._limit:g} s")
        line = stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            raise Failed(f"ended: {''.join(last)[:200]}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def start_all(names: list[str], device: str, size: str, limit: float) -> dict[str, Competitor]:
    """Start one after the other, so that they do not slow each other; tell which have failed."""
    running: dict[str, Competitor] = {}
    for name in names:
        try:
            running[name] = competitor = Competitor(name, device, size, limit)
            competitor.start()
        except Failed as error:
            print(f"{name} failed: {error}", flush=True)
            if name in running:
                running.pop(name).stop()
    return running


def ask(running: dict[str, Competitor], command: str) -> dict[str, Any]:
    """Give a command to each in turn; by name, the answers. Who fails is running no more."""
    answers: dict[str, Any] = {}
    for name, competitor in list(running.items()):
        try:
            answers[name] = competitor.do(command)
        except Failed as error:
            print(f"{name} failed: {error}", flush=True)
            running.pop(name).stop()
    return answers


def compare(names: list[str], device: str, size: str, rounds: int, limit: float) -> None:
    """Print a line for each competitor; the first is what the others are compared with."""
    running = start_all(names, device, size, limit)
    try:
        errors = product_errors(running) if "exact" in running else {}
        if "exact" in running:
            running.pop("exact").stop()
        times = [ask(running, "time") for _ in range(rounds)]
        peaks = ask(running, "memory")
        seconds = {name: [each[name] for each in times] for name in running}
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        print(f"{'':30s} ms, median     least   over {names[0]:12s}   memory, MiB   error")
        for name, competitor in running.items():
            ratio = medians[name] / medians[names[0]] if names[0] in medians else math.nan
            error = f"{errors[name]:8.1e}" if name in errors else ""
            print(
                f"{competitor.label:30s} {1e3 * medians[name]:10.2f} "
                f"{1e3 * min(seconds[name]):9.2f} {ratio:12.2f} "
                f"{peaks[name] / 2**20:21.1f}   {error}",
                flush=True,
            )
    finally:
        for competitor in running.values():
            competitor.stop()


def product_errors(running: dict[str, Competitor]) -> dict[str, float]:
    """Error of each product in the 2-norm, over the norm of the exact one."""
    products: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "product.pt"
        for name in list(running):
            if name == "gradient":
                continue
            if ask({name: running[name]}, f"save {file}"):
                products[name] = torch.load(file).double()
            else:
                del running[name]
    if "exact" not in products:
        return {}
    reference = products.pop("exact")
    return {
        name: float((product - reference).norm() / reference.norm())
        for name, product in products.items()
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tiny", action="store_true", help="to see that all works")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for an answer")
    parser.add_argument("--only", choices=["products", "steps"])
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--save", action="store_true", help="keep what is printed in results/")
    choices = parser.parse_args()
    size = "tiny" if choices.tiny else choices.device
    with (
        kept_in_file("rivals", torch.device(choices.device))
        if choices.save
        else contextlib.nullcontext()
    ):
        heading(choices.device)
        for kind, names in (("products", list(PRODUCTS)), ("steps", list(STEPS))):
            if choices.only in (None, kind):
                print(kind)
                chosen = [name for name in names if name not in choices.without]
                compare(chosen, choices.device, size, choices.rounds, choices.limit)
                print(flush=True)


if __name__ == "__main__":
    main()
