"""The batches of a landscape, from a list or a loader."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_linf.probe.random_state import capture_random


def list_batches(caller: str, name: str, batches: Sequence[Any] | Iterable[Any]) -> Sequence[Any]:
    """Give a list of batches as it is, and all batches of a loader as a list.

    A loader that shuffles draws from the global random state, which is put back.

    Raises:
        ValueError: If it is one batch instead of a list of some, or has no length, as an iterator.
    """
    if isinstance(batches, (Tensor, np.ndarray, Mapping, str)):
        raise ValueError(
            f"{caller}: expected `{name}` to be a list of batches, got a "
            f"{type(batches).__name__}, which looks like one batch. Write [batch]."
        )
    if isinstance(batches, Sequence):
        return batches
    if not isinstance(batches, Iterable) or not _has_length(batches):
        raise ValueError(
            f"{caller}: expected `{name}` to be a list of batches or a loader that has a length, "
            f"got {type(batches).__name__}. The loss is a mean over all of them, several times; "
            "take as many as you want to measure on: list(itertools.islice(loader, 8))."
        )
    restore = capture_random()
    try:
        return list(batches)
    finally:
        restore()


def _has_length(batches: Any) -> bool:
    try:
        len(batches)
    except (TypeError, NotImplementedError):  # what loaders of iterable data sets raise
        return False
    return True
