"""Tensors of event files as arrays, none of them larger than the file that it came from."""

import json
from collections.abc import Callable
from math import prod
from typing import Any


def decode(tensor: Any, make_ndarray: Callable[[Any], Any]) -> Any:
    """Turn a ``TensorProto`` into an array.

    One value may stand for all entries there, so a hundred bytes can claim gigabytes. Each entry
    that is there takes a byte or more: what claims more entries than it has bytes is not made.

    Args:
        tensor: Of an event.
        make_ndarray: TensorBoard's function of that name.

    Returns:
        The array, or None if there is none in it.
    """
    num_entries = prod(dim.size for dim in tensor.tensor_shape.dim)
    if not 0 <= num_entries <= tensor.ByteSize():
        return None
    try:
        return make_ndarray(tensor)
    except (ValueError, TypeError, OverflowError):  # another number of bytes, an unknown type
        return None


def decode_report(array: Any) -> Any:
    """Read JSON from an array of one string; a ValueError if it holds anything else."""
    try:
        return json.loads(array.item())
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"expected JSON, got {type(error).__name__}: {error}") from error
