"""Other packages, each in a process and an environment of its own, that act when told to."""

import contextlib
import json
import os
import select
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

import torch
from stopwatch import ROOT

# What is installed for each, but for wandb without dependencies, which could replace torch: what
# else they import is here already.
REQUIREMENTS: dict[str, list[str]] = {
    "curvlinops": [
        "curvlinops-for-pytorch==3.0.1", "backpack-for-pytorch==1.7.1", "einops", "einconv",
        "linear_operator", "opt-einsum",
    ],
    "hessian-eigenthings": ["hessian-eigenthings==1.0.0a5"],
    "PyHessian": ["pyhessian==0.1"],
    "Cockpit": [
        "cockpit-for-pytorch==1.0.2", "backpack-for-pytorch==1.7.1", "einops", "unfoldNd",
        "json-tricks", "seaborn", "setuptools==80.9.0",  # the last with pkg_resources
    ],
    "wandb.watch": ["wandb==0.31.0"],
    "Adam-mini": ["adam-mini==1.1.1"],
}  # fmt: skip
ENVIRONMENTS = ROOT / "build" / "rivals"
WORKER = ROOT / "benchmarks" / "rival_worker.py"


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
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    alone = [] if name == "wandb.watch" else ["--no-deps"]
    _run([*pip, *alone, *REQUIREMENTS[name]], limit)
    done.write_text(" ".join(REQUIREMENTS[name]))
    return str(python)


def _run(command: list[str], limit: float) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.CalledProcessError as error:
        last = "".join(error.stderr.strip().splitlines()[-1:])
        raise Failed(f"not installed: {last[:200]}") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not installed within {limit:g} s") from error


class Competitor:
    """A process that runs one action when told to."""

    def __init__(self, part: str, name: str, device: str, size: str, limit: float) -> None:
        self.label, self._limit = name, limit
        python = environment(name, limit)
        self._errors = tempfile.TemporaryFile("w+")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # of its files
        self._process = subprocess.Popen(
            [python, str(WORKER), part, name, device, size],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": self._folder.name},
        )  # fmt: skip

    def start(self) -> None:
        """Wait until it is ready."""
        told = self._answer()
        self.label = told["label"]
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
        self._folder.cleanup()


class Competitors:
    """Those that run, by name, and what those that have failed said."""

    def __init__(self, part: str, names: list[str], device: str, size: str, limit: float) -> None:
        self.running: dict[str, Competitor] = {}
        self.failures: dict[str, str] = {}
        for name in names:  # one after the other, so that they do not slow each other
            try:
                self.running[name] = competitor = Competitor(part, name, device, size, limit)
                competitor.start()
            except Failed as error:
                self._drop(name, error)

    def ask(self, command: str, names: list[str] | None = None) -> dict[str, Any]:
        """Give a command to each in turn; by name, the answers. Who fails is running no more."""
        answers: dict[str, Any] = {}
        for name in names if names is not None else list(self.running):
            try:
                answers[name] = self.running[name].do(command)
            except Failed as error:
                self._drop(name, error)
        return answers

    def stop(self, names: list[str] | None = None) -> None:
        """End processes, or all of them."""
        for name in names if names is not None else list(self.running):
            self.running.pop(name).stop()

    def _drop(self, name: str, error: Failed) -> None:
        print(f"{name} failed: {error}", flush=True)
        self.failures[name] = str(error)
        if name in self.running:
            self.stop([name])
