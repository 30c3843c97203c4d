"""The map of a reparameterized optimizer, for one vector of all its parameters."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
