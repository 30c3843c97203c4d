"""Tensors that a bound map computes once on each device, and leaves out of copies and pickles."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class TensorCache:
    """Tensors by key, each computed when first asked for. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key, computed by ``make()`` if there is none yet."""
        if key not in self._tensors:
            with torch.inference_mode(False):  # it may be used in or out of inference mode
                self._tensors[key] = make()
        return self._tensors[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorCache, ()
