"""What a result was made with."""

import os
import platform
from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    """Name Python, the libraries that decide numbers, and the machine."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for library in ("lightning", "numpy", "lightning-linf"):
        found[library] = version(library)
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found
