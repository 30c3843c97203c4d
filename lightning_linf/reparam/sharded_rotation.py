"""The map of a rotation on vectors that ranks share."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.sharded_rotation import ShardedRotation, Vectors
from lightning_linf.reparam.bound import BoundReparameterization


@dataclass(frozen=True)
class BoundShardedRotation(BoundReparameterization):
    """Rotations of vectors of which each rank holds a shard.

    How entries go from rank to rank is planned when they first do, once for each direction.
    """

    vectors: tuple[Vectors, ...]
    strength: float
    holdings: Holdings
    inverted: bool = False
    _plans: dict[bool, ShardedRotation] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_params(self) -> int:  # type: ignore[override]  # those of a shard
        """Number of entries of this rank's shard."""
        return self.holdings.num_local

    def inverse(self) -> "BoundShardedRotation":
        """Invert the map; both share their plans."""
        return replace(self, inverted=not self.inverted)

    def _multiply(self, vector: Tensor) -> Tensor:
        return self._rotated(vector, inverse=self.inverted)

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self._rotated(vector, inverse=not self.inverted)

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self._rotated(vector, inverse=not self.inverted, squared=True)

    def _multiply_(self, vector: Tensor) -> None:
        self._rotated(vector, inverse=self.inverted, out=vector)

    def _multiply_transpose_(self, vector: Tensor) -> None:
        self._rotated(vector, inverse=not self.inverted, out=vector)

    def _rotated(
        self, vector: Tensor, *, inverse: bool, squared: bool = False, out: Tensor | None = None
    ) -> Tensor:
        wide = vector.to(torch.promote_types(vector.dtype, torch.float32))
        plan = self._plan(inverse)
        own = self.holdings.own_part(wide.contiguous())
        del wide
        return plan(own, self.holdings.all_to_all, squared=squared, out=out).to(vector.dtype)

    def _plan(self, inverse: bool) -> ShardedRotation:
        if inverse not in self._plans:
            self._plans[inverse] = ShardedRotation(
                self.vectors, self.holdings.parts, self.holdings.layout, self.holdings.rank,
                strength=self.strength, inverse=inverse,
            )  # fmt: skip
        return self._plans[inverse]
