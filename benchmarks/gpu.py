"""Run everything that needs a CUDA device to be shown, and keep what came out.

    python benchmarks/gpu.py                    # tests and benchmarks, about 20 minutes
    python benchmarks/gpu.py --only tests       # a few minutes

Writes benchmarks/results/gpu-DATE-DEVICE.json: the outcome of every test marked gpu, and what the
benchmarks printed, each with its command. A benchmark that fails, or takes longer than --limit, is
recorded as such and the next one runs.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = (
    ("optimizers.py", "--device", "cuda"),
    ("optimizers.py", "--device", "cuda", "--width", "768", "--layers", "12", "--vocabulary",
     "50257", "--rounds", "10"),
    ("rotation.py", "--device", "cuda"),
    ("overhead.py", "--accelerator", "gpu"),
    ("one_one_norm.py", "--model", "mlp"),
    ("brackets.py",),
    ("advantage.py",),
)  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", choices=["tests", "benchmarks"])
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each command")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results")
    choices = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            f"benchmarks/gpu.py: expected a CUDA device, got none that torch {torch.__version__} "
            "can use. Run it on a machine with a GPU and a CUDA build of torch."
        )
    device = torch.cuda.get_device_name()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found: dict[str, Any] = {
        "date": today,
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": subprocess.getoutput(f"git -C {ROOT} rev-parse HEAD"),
    }
    path = choices.folder / f"gpu-{today}-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.json"
    if choices.only != "benchmarks":
        command = ["-m", "pytest", "tests", "-m", "gpu", "-v"]
        found["tests"] = run([sys.executable, *command], choices.limit, command)
        _write(path, found)
    if choices.only != "tests":
        found["benchmarks"] = []
        for script, *arguments in BENCHMARKS:
            command = [f"benchmarks/{script}", *arguments]
            found["benchmarks"].append(run([sys.executable, *command], choices.limit, command))
            _write(path, found)  # what is done is kept
    print(f"Written to {path}")


def run(command: list[str], limit: float, shown: list[str]) -> dict[str, Any]:
    """Run a command in the root of the repository, and tell what it printed."""
    print("python", *shown, flush=True)
    begin = time.perf_counter()
    try:
        finished = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
        outcome, lines, errors = str(finished.returncode), finished.stdout, finished.stderr
    except subprocess.TimeoutExpired as error:
        outcome, errors = f"longer than {limit:g} s", ""
        lines = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
    print(lines, flush=True)
    return {
        "command": " ".join(["python", *shown]),
        "exit": outcome,
        "seconds": round(time.perf_counter() - begin, 1),
        "printed": lines.splitlines(),
        "errors": errors.splitlines()[-20:] if outcome != "0" else [],
    }


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
