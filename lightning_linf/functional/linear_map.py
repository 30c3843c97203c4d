"""The protocol of a linear change of coordinates."""

from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from lightning_linf.functional.holdings import Holdings


class LinearMap(Protocol):
    """An invertible linear map A from coordinates phi to parameters theta = A phi, both (d,)."""

    def apply(self, vector: Tensor) -> Tensor:
        """Multiply with A. Shapes: (d,) -> (d,)."""

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A. Shapes: (d,) -> (d,)."""


@runtime_checkable
class ShardableMap(LinearMap, Protocol):
    """A linear map that also multiplies vectors of which every rank holds a shard."""

    def on_shards(self, holdings: Holdings) -> Self:
        """Give the same map of shards; all ranks must ask for its products together."""
