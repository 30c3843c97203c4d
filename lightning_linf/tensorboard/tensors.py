"""Tensors of event files as arrays, none of them larger than the file that it came from."""

from math import prod
from typing import Any

import numpy.typing as npt


def decode(tensor: Any) -> npt.NDArray[Any] | None:
    """Turn a ``TensorProto`` into an array.

    One value may stand for all entries there, so a hundred bytes can claim gigabytes. Every entry
    of ours takes a byte or more: what claims more entries than it has bytes is refused unmade.

    Returns:
        The array, or None if there is none in it.
    """
    # Not at the top: runs of other loggers can be read without tensorboard.
    from tensorboard.util.tensor_util import make_ndarray

    num_entries = prod(dim.size for dim in tensor.tensor_shape.dim)
    if not 0 <= num_entries <= tensor.ByteSize():
        return None
    try:
        return make_ndarray(tensor)  # type: ignore[no-any-return]
    except (ValueError, TypeError, OverflowError):  # another number of bytes, an unknown type
        return None
