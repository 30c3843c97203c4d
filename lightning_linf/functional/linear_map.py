"""The protocol of a linear change of coordinates."""

from typing import Protocol

from torch import Tensor


class LinearMap(Protocol):
    """An invertible linear map A from coordinates phi to parameters theta = A phi, both (d,)."""

    def apply(self, vector: Tensor) -> Tensor:
        """Multiply with A. Shapes: (d,) -> (d,)."""

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A. Shapes: (d,) -> (d,)."""
