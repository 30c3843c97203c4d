"""Where the kernels run, decided in one place."""

import logging
import os
from functools import lru_cache
from importlib.util import find_spec

import torch

_log = logging.getLogger(__name__)


def runs_kernels(device: torch.device) -> bool:
    """Say whether Triton kernels run on a device: on CUDA and ROCm, where Triton is installed.

    With ``TRITON_INTERPRET=1``, Triton's own switch, they run on CPUs, too: slowly, for tests.
    """
    return _runs_kernels(device.type, os.environ.get("TRITON_INTERPRET") == "1")


@lru_cache
def _runs_kernels(device_type: str, is_interpreted: bool) -> bool:
    if device_type != ("cpu" if is_interpreted else "cuda"):
        return False
    if find_spec("triton") is None:
        _log.debug(
            "Triton is not installed, so plain torch runs in place of its kernels on %s: the same "
            "results up to rounding, but slower. GPU builds of torch bring Triton along.",
            device_type,
        )
        return False
    return True
