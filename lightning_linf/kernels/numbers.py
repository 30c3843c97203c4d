"""Python's numbers and torch's dtypes as arguments of kernels."""

import ctypes
import math

import torch
import triton
import triton.language as tl


def split(number: float) -> tuple[float, float]:
    """Split a float, which would arrive as float32, into two of these: their sum has 48 bits."""
    high = ctypes.c_float(number).value
    return high, float(number) - high if math.isfinite(high) else 0.0


@triton.jit
def joined(high, low):
    """Join both parts of a number, in float64."""
    return tl.cast(high, tl.float64) + tl.cast(low, tl.float64)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Give Triton's name for a dtype."""
    found: tl.dtype = getattr(tl, str(dtype).removeprefix("torch."))
    return found
