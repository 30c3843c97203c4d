"""Seconds that work takes, on a device that works on while Python goes on."""

import time
from collections.abc import Callable

import torch


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Time one call, from an idle device to an idle device."""
    _wait(device)
    begin = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - begin


def place(device: torch.device) -> str:
    """Say where the time is taken: the name of a GPU, or the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
