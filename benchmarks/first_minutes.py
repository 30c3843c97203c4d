"""How long do the first minutes take a newcomer? Each command in a fresh clone, word for word.

    python benchmarks/first_minutes.py     # a quarter of an hour; downloads packages
    python benchmarks/first_minutes.py --only clone gpt2

pip takes the versions of constraints.txt, which are those of its cache where it has them.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from stopwatch import ROOT, heading

_ENTER = "python3 -m venv own && . own/bin/activate && "
_OWN = ". own/bin/activate && "
STEPS = {
    "clone": "the clone",
    "gpt2": "make gpt2",
    "test": "make test",
    "install": "python -m pip install -e '.[tensorboard]'",
    "train": "python train.py",
    "tab": "tensorboard --logdir lightning_logs",
    "report": "lightning-linf report lightning_logs -o report.html",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    chosen = parser.parse_args().only
    heading()
    print(
        "Seconds until it ends; of the tab, until it has a run. train.py is that of docs/start.md."
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in _measure(Path(folder) / "clone", chosen):
            print(f"{STEPS[name]}  {seconds:.0f}", flush=True)


def _measure(clone: Path, chosen: list[str]) -> Iterator[tuple[str, float]]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PIP_CONSTRAINT"] = str(clone / "constraints.txt")

    def run(command: str) -> float:
        begin = time.perf_counter()
        done = subprocess.run(
            ["bash", "-c", command], cwd=clone, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = f"{done.returncode}. It said:\n{done.stdout[-2000:]}"
            sys.exit(f"first_minutes: expected 0 from {command!r}, got {said}")
        return time.perf_counter() - begin

    clone.mkdir()
    cloned = run(f"git clone --quiet '{ROOT}' .")
    blocks = re.findall(r"```python\n(.*?)```", (clone / "docs/start.md").read_text("utf-8"), re.S)
    (clone / "train.py").write_text(blocks[0], encoding="utf-8")
    actions = {
        "clone": lambda: cloned,
        "gpt2": lambda: run(STEPS["gpt2"]),
        "test": lambda: run(STEPS["test"]),
        "install": lambda: run(_ENTER + STEPS["install"]),
        "train": lambda: run(_OWN + STEPS["train"]),
        "tab": lambda: _until_the_tab_has_a_run(clone, environment),
        "report": lambda: run(_OWN + STEPS["report"]),
    }
    for name in chosen:
        yield name, actions[name]()


def _until_the_tab_has_a_run(clone: Path, environment: dict[str, str]) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.perf_counter()
    process = subprocess.Popen(
        ["bash", "-c", f"{_OWN}exec {STEPS['tab']} --port {port}"], cwd=clone, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not _has_a_run(f"http://127.0.0.1:{port}/data/plugin/geometry/runs"):
            if process.poll() is not None:
                sys.exit(f"first_minutes: expected a server, got exit {process.returncode}.")
            time.sleep(0.1)
        return time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def _has_a_run(address: str) -> bool:
    try:
        with urlopen(address) as answer:
            return bool(json.load(answer)["runs"])
    except URLError:
        return False


if __name__ == "__main__":
    main()
