"""TensorBoard's own decoding of tensors, bounded while this plugin asks for them.

Its readers decode before they answer, with a function that makes all the entries that a tensor
claims, and fails as a whole for a single broken one. Nothing public lies in between.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tensorboard.util import tensor_util

from lightning_linf.tensorboard.tensors import decode

_make_ndarray = tensor_util.make_ndarray
_this_thread = threading.local()  # others may serve other plugins at the same time


@contextmanager
def bounded() -> Iterator[None]:
    """Let readers give an array without entries for each tensor that cannot be decoded."""
    tensor_util.make_ndarray = _decode
    _this_thread.is_bounded = True
    try:
        yield
    finally:
        _this_thread.is_bounded = False


def _decode(tensor: Any) -> Any:
    if not getattr(_this_thread, "is_bounded", False):
        return _make_ndarray(tensor)
    array = decode(tensor, _make_ndarray)
    return np.zeros(0, dtype=np.float32) if array is None else array
