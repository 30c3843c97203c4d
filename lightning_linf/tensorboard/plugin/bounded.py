"""Keep one broken tensor from hiding all others while this plugin reads event files.

TensorBoard's readers decode all tensors of an answer by ``tensor_util.make_ndarray``. It makes as
many entries as a tensor claims to have, and for a single broken one the whole answer is lost. There
is no public place to step in, so that function is replaced while this plugin reads.
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
    """Let readers return an empty array for each tensor that cannot be decoded."""
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
