"""What a bound map computes once and need not keep when it is copied or stored."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class TensorCache:
    """Tensors by key, made when first asked for. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Give the tensor of a key, by ``make()`` if there is none yet."""
        if key not in self._tensors:
            with torch.inference_mode(False):  # also used outside
                self._tensors[key] = make()
        return self._tensors[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorCache, ()
