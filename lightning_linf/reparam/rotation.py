"""A random rotation of the parameters, drawn again from its seed whenever it is used."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_linf.argument_checks import check_choice
from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.random import derive_seed
from lightning_linf.functional.rotation import check_strength, rotate_
from lightning_linf.functional.sharded_rotation import Vectors
from lightning_linf.reparam.bound import BoundIdentity, BoundReparameterization
from lightning_linf.reparam.reparameterization import Reparameterization, check_pattern
from lightning_linf.reparam.sharded_rotation import BoundShardedRotation

RotationScope = Literal["global", "tensor", "row", "column"]


@dataclass(frozen=True)
class Rotation(Reparameterization):
    """Rotate the coordinates by a random orthogonal matrix: theta = Q phi.

    Training with SGD is unchanged by it. Training with Adam is not, as Adam treats each coordinate
    by itself.

    Args:
        scope: What is rotated. "global": all tensors as one vector (in an optimizer, those of one
            parameter group). "tensor": each tensor by itself. "row": each row of a tensor seen as a
            matrix (first dimension by the rest), all rows by the same rotation. "column": each of
            its columns. Rows are those of the stored tensor, whatever its module does: the output
            units of ``nn.Linear``, but the input units of transformers' ``Conv1D``. A vector is a
            matrix of one column, so "row" leaves it alone.
        seed: Seed of the random signs.
        strength: From 0, the identity, to 1, a full rotation: about 1 minus the cosine of the angle
            between a coordinate axis and its image (:func:`~lightning_linf.functional.rotate`).
        only: A regular expression, searched in the names of the parameters; those without a match
            keep their coordinates.

    Raises:
        ValueError: If an argument has a wrong value.

    Source:
        Adam in rotated coordinates: Xie, Mohamadi & Li, arXiv:2410.08198.

    Example:
        >>> bound = Rotation("tensor", seed=0).bind([torch.Size([3, 2]), torch.Size([4])])
        >>> x = torch.arange(10.0)
        >>> torch.allclose(bound.apply_transpose(bound.apply(x)), x, atol=1e-5)
        True
    """

    scope: RotationScope = "global"
    _: KW_ONLY
    seed: int = 0
    strength: float = 1.0
    only: str | None = None

    def __post_init__(self) -> None:
        check_choice("Rotation", "scope", self.scope, get_args(RotationScope))
        check_strength("Rotation", self.strength)
        check_pattern(self.only, "Rotation")

    @property
    def mixes_tensors(self) -> bool:
        """Whether an entry of phi may belong to several tensors."""
        return self.scope == "global" and self.strength > 0

    def selects(self, names: Sequence[str] | None, num_tensors: int) -> list[bool]:
        """Say of each tensor whether its coordinates change; none do at strength 0."""
        selected = super().selects(names, num_tensors)
        return selected if self.strength > 0 else [False] * num_tensors

    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        num_params = sum(math.prod(shape) for shape in shapes)
        if self.strength == 0:
            return BoundIdentity(num_params)
        if self.scope == "global":
            matrices: tuple[tuple[int, int], ...] = ((1, num_params),)
        elif self.scope == "tensor":
            matrices = tuple((1, math.prod(shape)) for shape in shapes)
        else:
            matrices = tuple((shape[0] if shape else 1, math.prod(shape[1:])) for shape in shapes)
        seeds = tuple(derive_seed("rotation", self.seed, stream, i) for i in range(len(matrices)))
        return BoundRotation(matrices, seeds, self.strength, from_left=self.scope == "column")


@dataclass(frozen=True)
class BoundRotation(BoundReparameterization):
    """Rotations of matrices that lie one after the other in a vector."""

    matrices: tuple[tuple[int, int], ...]  # rows and columns of each
    seeds: tuple[int, ...]
    strength: float
    from_left: bool  # rotate columns instead of rows
    inverted: bool = False

    @property
    def num_params(self) -> int:  # type: ignore[override]  # that of the matrices
        """Number of parameters d."""
        return sum(math.prod(shape) for shape in self.matrices)

    def inverse(self) -> "BoundRotation":
        """Invert the map."""
        return replace(self, inverted=not self.inverted)

    def _on_shards(self, holdings: Holdings) -> BoundShardedRotation:
        vectors, first = [], 0
        for (rows, columns), seed in zip(self.matrices, self.seeds, strict=True):
            if not self.from_left:
                shape = rows, columns, 1
            elif columns == 1:
                shape = 1, rows, 1
            else:
                shape = (1, rows, columns) if rows > 1 else (columns, 1, 1)
            if rows * columns:
                vectors.append(Vectors(first, *shape, seed))
            first += rows * columns
        return BoundShardedRotation(tuple(vectors), self.strength, holdings, self.inverted)

    def _multiply(self, vector: Tensor) -> Tensor:
        return self._rotated(vector, inverse=self.inverted)

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self._rotated(vector, inverse=not self.inverted)

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self._rotated(vector, inverse=not self.inverted, squared=True)

    def _multiply_(self, vector: Tensor) -> None:
        self._rotate_(vector, inverse=self.inverted)

    def _multiply_transpose_(self, vector: Tensor) -> None:
        self._rotate_(vector, inverse=not self.inverted)

    def _rotated(self, vector: Tensor, *, inverse: bool, squared: bool = False) -> Tensor:
        dtype = torch.promote_types(vector.dtype, torch.float32)
        result = torch.empty(vector.shape, dtype=dtype, device=vector.device).copy_(vector)
        self._rotate_(result, inverse=inverse, squared=squared)
        return result.to(vector.dtype)

    def _rotate_(self, vector: Tensor, *, inverse: bool, squared: bool = False) -> None:
        parts = vector.split_with_sizes([math.prod(shape) for shape in self.matrices])
        for shape, seed, part in zip(self.matrices, self.seeds, parts, strict=True):
            matrix = part.view(shape)
            rows = matrix.mT.contiguous() if self.from_left else matrix
            rotate_(rows, seed=seed, strength=self.strength, inverse=inverse, squared=squared)
            if self.from_left:
                matrix.copy_(rows.mT)
