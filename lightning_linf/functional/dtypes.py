"""The dtypes in which we compute, and in which we add up."""

from collections.abc import Iterable

import torch
from torch import Tensor


def wide_dtype(like: Tensor) -> torch.dtype:
    """Give the widest dtype for sums on the device: float64, or float32 on MPS, which has none."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def working_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Give the widest dtype of the tensors, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
