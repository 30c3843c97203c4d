"""What every benchmark needs: a heading that says what a result rests on, and seconds."""

import contextlib
import datetime
import io
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import torch

PACKAGES = ("lightning_linf", "torch", "triton", "lightning", "transformers", "tensorboard")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def heading(device: torch.device | str = "cpu") -> None:
    """Print the command, the commit, the versions of what it has imported, the device and the date.

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
    print(f"# {versions}, {place_name(device)}, {today}")
    print(f"# commit {commit()}\n", flush=True)


@contextlib.contextmanager
def kept_in_file(name: str, device: torch.device, mode: str = "w") -> Iterator[None]:
    """Keep what is printed inside in ``results/NAME-DATE-DEVICE.txt`` too, as it comes.

    With the mode "w" in place of what an earlier run of the day has left, with "a" after it.
    """
    place = place_name(device) if device.type == "cuda" else "cpu"
    today = datetime.datetime.now(datetime.UTC).date()
    file_name = re.sub(r"[^A-Za-z0-9-]+", "-", f"{name}-{today}-{place}") + ".txt"
    with (RESULTS / file_name).open(mode, encoding="utf-8") as file:
        with contextlib.redirect_stdout(_Both(sys.stdout, file)):
            yield
        print(f"Kept in {RESULTS / file_name}")


class _Both(io.TextIOBase):
    """Writes to two streams, so that what is shown is kept."""

    def __init__(self, *streams: TextIO) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Time one call, from an idle device to an idle device."""
    _wait(device)
    begin = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - begin


def medians(
    actions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, float]:
    """Time actions in turn, after one round that warms up; by name, the median in seconds.

    In turn, so that what else the machine does falls on all of them alike: ratios of such medians
    hold on a busy machine, seconds do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            seconds[name].append(seconds_of(action, device))
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def commit() -> str:
    """Name the commit of the source tree, and say whether files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12"]
    try:
        described = subprocess.run(
            [*command, "--dirty=, with changes"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git is installed
        return "unknown"
    return described.stdout.strip() or "unknown"


def place_name(device: torch.device | str) -> str:
    """Name a GPU, or say how many of the cores of a CPU are used."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
