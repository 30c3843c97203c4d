"""Changes of coordinates made of others: one after another, and inverses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_linf.reparam.reparameterization import BoundReparameterization, Reparameterization


@dataclass(frozen=True)
class Inverse(Reparameterization):
    """The inverse of a change of coordinates; its own inverse is the original."""

    original: Reparameterization

    @property
    def only(self) -> str | None:  # type: ignore[override]  # that of the original, not a copy
        """That of the original."""
        return self.original.only

    @property
    def mixes_tensors(self) -> bool:
        """Whether the original mixes tensors."""
        return self.original.mixes_tensors

    def selects(self, names: Sequence[str] | None, num_tensors: int) -> list[bool]:
        """Say of each tensor whether its coordinates change."""
        return self.original.selects(names, num_tensors)

    def inverse(self) -> Reparameterization:
        """Give the original back."""
        return self.original

    def __repr__(self) -> str:
        return f"{self.original!r}.inverse()"

    def bind(
        self, shapes: Sequence[torch.Size], names: Sequence[str] | None = None, *, stream: int = 0
    ) -> BoundReparameterization:
        """Make the map of vectors that hold tensors of these shapes, flattened and joined."""
        return self.original.bind(shapes, names, stream=stream).inverse()

    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        return self.original._bind(shapes, stream).inverse()


@dataclass(frozen=True)
class Composition(Reparameterization):
    """One change of coordinates after another: ``(A @ B)`` is theta = A (B phi).

    Each part changes the tensors that its own ``only`` selects.

    Args:
        outer: A, nearest to the parameters.
        inner: B, nearest to the new coordinates.

    Raises:
        ValueError: If a part is not a reparameterization.
    """

    outer: Reparameterization
    inner: Reparameterization

    def __post_init__(self) -> None:
        for part in (self.outer, self.inner):
            if not isinstance(part, Reparameterization):
                raise ValueError(
                    f"Composition: expected two reparameterizations, got {part!r}. Make one, say "
                    "Rotation()."
                )

    @property
    def only(self) -> None:  # type: ignore[override]  # each part has its own
        """None: each part has its own."""
        return None

    @property
    def mixes_tensors(self) -> bool:
        """Whether one of the parts mixes tensors."""
        return self.outer.mixes_tensors or self.inner.mixes_tensors

    def selects(self, names: Sequence[str] | None, num_tensors: int) -> list[bool]:
        """Say of each tensor whether one of the parts changes its coordinates."""
        parts = (part.selects(names, num_tensors) for part in (self.outer, self.inner))
        return [a or b for a, b in zip(*parts, strict=True)]

    def inverse(self) -> "Composition":
        """Invert the map: the inverse of the inner part after that of the outer one."""
        return Composition(self.inner.inverse(), self.outer.inverse())

    def __repr__(self) -> str:
        return f"({self.outer!r} @ {self.inner!r})"

    def bind(
        self, shapes: Sequence[torch.Size], names: Sequence[str] | None = None, *, stream: int = 0
    ) -> BoundReparameterization:
        """Make the map of vectors that hold tensors of these shapes, flattened and joined."""
        return BoundComposition(
            self.outer.bind(shapes, names, stream=stream),
            self.inner.bind(shapes, names, stream=stream),
        )

    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        return BoundComposition(self.outer._bind(shapes, stream), self.inner._bind(shapes, stream))


@dataclass(frozen=True)
class BoundComposition(BoundReparameterization):
    """One bound map after another."""

    outer: BoundReparameterization
    inner: BoundReparameterization

    @property
    def num_params(self) -> int:  # type: ignore[override]  # that of the parts
        """Number of parameters d."""
        return self.outer.num_params

    def inverse(self) -> "BoundComposition":
        """Invert the map."""
        return BoundComposition(self.inner.inverse(), self.outer.inverse())

    def _multiply(self, vector: Tensor) -> Tensor:
        return self.outer._multiply(self.inner._multiply(vector))

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self.inner._multiply_transpose(self.outer._multiply_transpose(vector))

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        middle = self.outer._multiply_transpose_squared(vector)
        return self.inner._multiply_transpose_squared(middle)
