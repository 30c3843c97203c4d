"""Protect TensorBoard's readers from broken tensors while this plugin reads.

Its readers decode all tensors of a tag before they give any to a plugin. The function that they
call makes as many entries as a tensor claims to have, and an error for one tensor loses all of
them. No public hook lies in between, so that function is replaced.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tensorboard.util import tensor_util

from lightning_linf.tensorboard.tensors import decode

_make_ndarray = tensor_util.make_ndarray
_this_thread = threading.local()  # other threads may serve other plugins at the same time


@contextmanager
def bounded() -> Iterator[None]:
    """Within this context, readers give an empty array for a tensor that cannot be decoded."""
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
