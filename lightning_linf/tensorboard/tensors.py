"""Decode tensors of event files, without trusting the sizes that they claim."""

import json
from collections.abc import Callable
from math import prod
from typing import Any


def decode(tensor: Any, make_ndarray: Callable[[Any], Any]) -> Any:
    """Turn a ``TensorProto`` into an array, unless it claims more entries than it has bytes.

    A ``TensorProto`` may give one value for all entries of its shape, so that a broken event of a
    hundred bytes can ask for gigabytes. Tensors that the monitors write hold every entry, which
    takes at least a byte.

    Args:
        tensor: The ``TensorProto`` of an event.
        make_ndarray: ``tensorboard.util.tensor_util.make_ndarray``.

    Returns:
        The array, or None if the tensor cannot be decoded.
    """
    num_entries = prod(dim.size for dim in tensor.tensor_shape.dim)
    if not 0 <= num_entries <= tensor.ByteSize():
        return None
    try:
        return make_ndarray(tensor)
    except (ValueError, TypeError, OverflowError):  # too few bytes for the shape, an unknown type
        return None


def decode_report(array: Any) -> Any:
    """Read JSON from an array of one string; a ValueError if it holds anything else."""
    try:
        return json.loads(array.item())
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"expected JSON, got {type(error).__name__}: {error}") from error
