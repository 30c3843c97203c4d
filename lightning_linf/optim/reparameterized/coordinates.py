"""The map of a reparameterized optimizer, for one vector of all its parameters."""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from lightning_linf.functional.holdings import Holdings
from lightning_linf.reparam import BoundReparameterization


class Coordinates:
    """Multiply vectors with A: d parameters in a given order, changed in parts by several maps."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        parts: Sequence[tuple[Sequence[Tensor], BoundReparameterization]],
    ) -> None:
        place = {parameter: i for i, parameter in enumerate(parameters)}
        missing = sum(theta not in place for thetas, _ in parts for theta in thetas)
        if missing:
            raise ValueError(
                "Reparameterized.coordinates: expected all parameters that the map changes, got "
                f"{missing} too few. Give all parameters of the optimizer."
            )
        self._sizes = [parameter.numel() for parameter in parameters]
        self._parts = [([place[theta] for theta in thetas], bound) for thetas, bound in parts]

    def on_shards(self, holdings: Holdings) -> "Coordinates":
        """Give the same map of vectors of which each rank holds a shard.

        Args:
            holdings: Which entries each rank holds of a vector of the given parameters.
        """
        if list(holdings.sizes) != self._sizes:
            raise ValueError(
                f"Reparameterized.coordinates: expected holdings of tensors of {self._sizes} "
                f"entries, got {list(holdings.sizes)}. Describe the given parameters."
            )
        result = copy(self)
        result._sizes = holdings.local_sizes
        result._parts = [
            (places, bound.on_shards(holdings.select(places))) for places, bound in self._parts
        ]
        return result

    def apply(self, vector: Tensor) -> Tensor:
        """Multiply with A. Shapes: (d,) -> (d,)."""
        return self._each(vector, lambda bound, part: bound.apply(part))

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A. Shapes: (d,) -> (d,)."""
        return self._each(vector, lambda bound, part: bound.apply_transpose(part))

    def _each(
        self, vector: Tensor, function: Callable[[BoundReparameterization, Tensor], Tensor]
    ) -> Tensor:
        pieces = list(vector.split_with_sizes(self._sizes))
        for places, bound in self._parts:
            changed = function(bound, torch.cat([pieces[i] for i in places]))
            parts = changed.split_with_sizes([self._sizes[i] for i in places])
            for i, part in zip(places, parts, strict=True):
                pieces[i] = part
        return torch.cat(pieces)
