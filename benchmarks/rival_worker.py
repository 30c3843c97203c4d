"""One competitor of `rivals.py`, in a process of its own: does what it is told on its input.

    python benchmarks/rival_worker.py PART NAME DEVICE SIZE

Reads commands, a line each, and answers each with one line of JSON: "time" runs its action once and
gives the seconds, "memory" gives the peak in bytes, "value" what the action returns, and
"save FILE" keeps it. What the packages print themselves goes to the standard error.
"""

import json
import os
import sys
from importlib import import_module
from importlib.metadata import version

import torch
from live_memory import peak_bytes
from stopwatch import seconds_of
from torch import Tensor

PACKAGES = {  # whose versions are told
    "lightning_linf": "lightning_linf",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian-eigenthings": "hessian-eigenthings",
    "PyHessian": "pyhessian",
    "Cockpit": "cockpit-for-pytorch",
    "wandb.watch": "wandb",
    "Adam-mini": "adam-mini",
}


def main() -> None:
    """Serve until the input ends."""
    part, name, device, size = *sys.argv[1:3], torch.device(sys.argv[3]), sys.argv[4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    action = import_module(f"rival_{part}").make(name, device, size)
    action()  # warms up
    package = PACKAGES.get(name)
    label = f"{name} {version(package)}" if package else name
    answers.write(json.dumps({"label": label, "torch": torch.__version__}) + "\n")
    answers.flush()
    for line in sys.stdin:
        command, *arguments = line.split()
        result: object = None
        if command == "time":
            result = seconds_of(action, device)
        elif command == "memory":
            result = peak_bytes(action, device)
        elif command == "value":
            result = action()
        elif command == "save":
            product = action()
            assert isinstance(product, Tensor)
            torch.save(product.cpu(), arguments[0])
            result = True
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
