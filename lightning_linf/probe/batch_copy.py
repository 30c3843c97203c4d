"""Copies and parts of a batch, whatever it is made of."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_linf.errors import ProbeError
from lightning_linf.probe.stateful_objects import is_machinery, slots_of

_ATOMS = (int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque)


def copy_batch(batch: Any, copy_tensor: Callable[[Tensor], Tensor]) -> Any:
    """Copy containers and objects of any class deeply, and tensors by ``copy_tensor``.

    An object is copied attribute by attribute, or by its own ``__deepcopy__``; what occurs twice is
    copied once. Not copied are modules, data sets, objects of packages that hold no state (images,
    tokenizers), and read-only and memory-mapped arrays: the copy refers to the same ones.

    Raises:
        ProbeError: If an object cannot be copied.
    """
    memo = _Memo()
    try:
        for part in _parts(batch):
            if isinstance(part, dict):
                memo.dicts[id(part)] = part
            else:
                memo[id(part)] = copy_tensor(part) if isinstance(part, Tensor) else part
        return copy.deepcopy(batch, memo)
    except Exception as error:
        raise ProbeError(
            "probe: expected a batch that can be copied, so that what training_step does to it "
            f"does not last, but copying a {type(batch).__name__} failed: "
            f"{type(error).__name__}: {error}. Give the class that cannot be copied a "
            "__deepcopy__(memo), or keep its objects out of the batch."
        ) from error


def clone_tensor(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor, to ``dtype`` if its own is a narrower floating one."""
    if dtype and tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize:
        return tensor.to(dtype, copy=True)
    return tensor.clone()


def tensors_of(batch: Any) -> list[Tensor]:
    """List the tensors in a batch, in its containers and objects, each once."""
    return [part for part in _parts(batch) if isinstance(part, Tensor)]


def num_samples(batch: Any, remedy: str) -> int:
    """Length of the first dimension of the tensors in a batch.

    Raises:
        ProbeError: If they disagree about it, or there are none; it ends with the ``remedy``.
    """
    lengths = {len(tensor) for tensor in tensors_of(batch) if tensor.ndim}
    if len(lengths) != 1:
        raise ProbeError(
            "probe: expected all tensors of a batch to have the same first dimension, got "
            f"{sorted(lengths) or 'no tensors'}. {remedy}"
        )
    return lengths.pop()


def split_batch(batch: Any, num_parts: int) -> list[Any]:
    """Split a batch by samples, the first dimension of its tensors, into at most so many parts.

    Raises:
        ProbeError: If tensors of the batch disagree about its length.
    """
    if num_parts == 1:
        return [batch]
    length = num_samples(batch, "Let probe_loss(batch) take fewer samples, so that one part fits.")
    bounds = [length * part // num_parts for part in range(num_parts + 1)]

    def part(first: int, last: int) -> Any:
        return copy_batch(batch, lambda tensor: tensor[first:last] if tensor.ndim else tensor)

    return [part(first, last) for first, last in pairwise(bounds) if first < last]


class _Memo(dict[int, Any]):
    """The memo of ``copy.deepcopy``: from the identity of an object to its copy.

    Copies of ``dicts`` are made by their own class, once deepcopy asks for them.
    """

    def __init__(self) -> None:
        self.dicts: dict[int, dict[Any, Any]] = {}

    def get(self, key: int, default: Any = None) -> Any:
        if key in self.dicts and key not in self:
            value = self.dicts[key]
            self[key] = type(value)({k: copy.deepcopy(v, self) for k, v in dict.items(value)})
        return super().get(key, default)


def _is_attribute_dict(value: dict[Any, Any]) -> bool:
    """Whether it is a dict of a class of its own, which may show its entries as attributes.

    Then its class must make the copy: deepcopy might call an entry instead of a method, or lose
    ``self.__dict__ = self``.
    """
    cls = type(value)
    reduces = cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__
    return cls is not dict and reduces and not hasattr(cls, "__deepcopy__")


def _parts(batch: Any) -> Iterator[Any]:
    """Find what deepcopy must not copy by itself: tensors, and what is not copied; each once."""
    pending, seen = [batch], set()
    while pending:
        value = pending.pop()
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
            continue
        if isinstance(value, np.ndarray):
            if not value.flags.writeable or isinstance(value, np.memmap):
                yield value
            elif value.dtype.hasobject:
                pending += value.flat
            continue
        if isinstance(value, dict):
            pending += dict.values(value)
            if _is_attribute_dict(value):
                yield value
                continue
        elif isinstance(value, _CONTAINERS):
            pending += value
        elif isinstance(value, nn.Module) or is_machinery(value):
            yield value
            continue
        pending += getattr(value, "__dict__", {}).values()
        pending += (item for _, item in slots_of(value))
