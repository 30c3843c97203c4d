"""Matrix products of float32 in float32, whatever the user allows in theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_matmul_precision() -> Iterator[None]:
    """Multiply float32 matrices without TF32 or bfloat16 inside; settings are restored on leaving.

    The settings are those of the process, so other threads are precise meanwhile, too.
    """
    modules: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    if all(hasattr(module, "fp32_precision") for module in modules):
        # Since torch 2.9, which raises in the old functions once these were set: use only these.
        reduced = [(m, m.fp32_precision) for m in modules if m.fp32_precision not in _FULL]
        try:
            for module, _ in reduced:
                module.fp32_precision = "ieee"
            yield
        finally:
            for module, value in reduced:
                module.fp32_precision = "none"  # take it from the setting of the whole backend
                if module.fp32_precision != value:
                    module.fp32_precision = value
        return
    value = torch.get_float32_matmul_precision()
    try:
        if value != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if value != "highest":
            torch.set_float32_matmul_precision(value)


_FULL = ("none", "ieee")  # "none": nothing was set
