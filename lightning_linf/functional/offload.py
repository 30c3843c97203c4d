"""Long vectors that wait on the CPU while an operation runs that does not need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

Offload = Literal["cpu"]
_PLACE: ContextVar[Offload | None] = ContextVar("offload", default=None)


@contextmanager
def offloading(place: Offload | None) -> Iterator[None]:
    """Let :func:`set_aside` move vectors to the CPU inside; with None it moves nothing.

    A context, as torch's own ``save_on_cpu`` is one: estimators hold such vectors deep inside of
    what their callers see.
    """
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


def set_aside(vector: Tensor) -> Tensor:
    """Give the vector to keep until it is needed again: itself, or a copy of it on the CPU.

    The copy is in pinned memory where the vector is on CUDA. The caller drops the vector, and gets
    it back, to the last bit, by :func:`bring_back`. On the CPU, too, copies are made both ways.
    """
    return vector if _PLACE.get() is None else _host_memory(vector).copy_(vector)


def bring_back(kept: Tensor, device: torch.device) -> Tensor:
    """Give, on its device, a vector that was :func:`set_aside`: itself, or a copy."""
    return kept.to(device, copy=_PLACE.get() is not None)


def _host_memory(like: Tensor) -> Tensor:
    return torch.empty_like(like, device="cpu", pin_memory=like.is_cuda)
