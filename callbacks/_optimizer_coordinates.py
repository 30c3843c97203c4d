"""The coordinates in which a trainer's optimizers step, as one map of all their parameters."""

from collections.abc import Sequence
from copy import copy

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.linear_map import ShardableMap
from lightning_linf.optim import Reparameterized


class OptimizerCoordinates:
    """The map theta = A phi of vectors (d,), where each optimizer steps its own part of phi.

    Args:
        optimizers: Of the trainer; those that are not reparameterized step the parameters as they
            are.
        parameters: The d parameters, in the order of the vector.

    Raises:
        ValueError: If an optimizer's map needs a parameter that is not among them.
    """

    def __init__(self, optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> None:
        mapped = [each for each in optimizers if isinstance(each, Reparameterized)]
        self.name = " and ".join(repr(each.reparameterization) for each in mapped)
        self._maps: list[ShardableMap] = [each.coordinates(parameters) for each in mapped]

    @property
    def is_identity(self) -> bool:
        """Whether all optimizers step the parameters themselves."""
        return not self._maps

    def on_shards(self, holdings: Holdings) -> "OptimizerCoordinates":
        """Give the same map of vectors of which each rank holds a shard."""
        result = copy(self)
        result._maps = [each.on_shards(holdings) for each in self._maps]
        return result

    def apply(self, vector: Tensor) -> Tensor:
        """Multiply with A. Shapes: (d,) -> (d,)."""
        for each in self._maps:  # of different parameters, so in any order
            vector = each.apply(vector)
        return vector

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A. Shapes: (d,) -> (d,)."""
        for each in self._maps:
            vector = each.apply_transpose(vector)
        return vector

    def __repr__(self) -> str:
        return f"the optimizer, {self.name}"
