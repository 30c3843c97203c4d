"""What every benchmark needs: a heading that says what a result rests on, and seconds."""

import datetime
import os
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch

PACKAGES = ("lightning_linf", "torch", "lightning", "transformers", "tensorboard")


def heading(device: torch.device | str = "cpu") -> None:
    """Print the command, the versions of the packages it has imported, the device and the date.

    Every benchmark calls this before it prints anything else, so that its output can be kept as it
    is in ``benchmarks/results``.
    """
    script, *arguments = sys.argv
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={threads} " if threads else ""
    command = shlex.join(["python", os.path.relpath(script), *arguments])
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES if name in sys.modules)
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"# {setting}{command}")
    print(f"# {versions}, {_place(torch.device(device))}, {today}\n", flush=True)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Time one call, from an idle device to an idle device."""
    _wait(device)
    begin = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - begin


def _place(device: torch.device) -> str:
    """Name a GPU, or say how many of the cores of a CPU are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
