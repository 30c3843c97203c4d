"""Linear maps theta = A phi of vectors that hold tensors of known shapes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from lightning_linf.functional.holdings import Holdings


class BoundReparameterization(ABC):
    """An invertible linear map A of vectors (d,): theta = A phi.

    The vector holds tensors of known shapes, flattened and joined in their order. If a loss has the
    gradient g and the Hessian H with respect to theta, those with respect to phi are
    ``apply_transpose(g)`` and ``A^T H A``. Results are new tensors with the dtype and device of the
    argument, and without a graph.

    Vectors may also be divided among ranks: :meth:`on_shards` gives the same map of shards.

    Attributes:
        num_params: d; or for a map of shards, how many entries this rank's shard has.
    """

    num_params: int

    @torch.no_grad()
    def apply(self, vector: Tensor) -> Tensor:
        """Multiply with A. Shapes: (d,) -> (d,)."""
        return self._multiply(self._checked(vector))

    @torch.no_grad()
    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A. Shapes: (d,) -> (d,)."""
        return self._multiply_transpose(self._checked(vector))

    @torch.no_grad()
    def apply_(self, vector: Tensor) -> Tensor:
        """Multiply with A in place. Shapes: (d,) -> (d,), float32 or float64, contiguous."""
        self._multiply_(self._checked(vector))
        return vector

    @torch.no_grad()
    def apply_transpose_(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A in place, as :meth:`apply_`."""
        self._multiply_transpose_(self._checked(vector))
        return vector

    @torch.no_grad()
    def apply_transpose_squared(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of the entrywise square of A. Shapes: (d,) -> (d,).

        If the coordinates of ``g`` are uncorrelated and have the second moments ``vector``, these
        are the second moments of ``A^T g``. A rotation takes the expectation of its square over its
        random signs. A composition multiplies with the squares of its parts. That is the square of
        their product if at most one of them is a rotation, and its expectation if several are and
        have different seeds.
        """
        return self._multiply_transpose_squared(self._checked(vector))

    @abstractmethod
    def inverse(self) -> "BoundReparameterization":
        """Invert the map."""

    def on_shards(self, holdings: Holdings) -> "BoundReparameterization":
        """Give the same map of vectors of which each rank holds a shard.

        Its products are computed by all ranks together: each must ask for them. Those of this
        package need memory for a few shards. Other maps gather whole vectors, unless they override
        :meth:`_on_shards`.

        Args:
            holdings: Which entries each rank holds of a vector of the tensors that the map was
                bound to.
        """
        if holdings.num_params != self.num_params:
            raise ValueError(
                f"BoundReparameterization: expected holdings of a vector of {self.num_params} "
                f"entries, got {holdings.num_params}. Describe the tensors that the map was bound "
                "to, in their order."
            )
        return self if holdings.are_whole else self._on_shards(holdings)

    def _on_shards(self, holdings: Holdings) -> "BoundReparameterization":
        return BoundGathering(self, holdings)

    @abstractmethod
    def _multiply(self, vector: Tensor) -> Tensor: ...

    @abstractmethod
    def _multiply_transpose(self, vector: Tensor) -> Tensor: ...

    @abstractmethod
    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor: ...

    # Subclasses that can do without a second vector override these two.

    def _multiply_(self, vector: Tensor) -> None:
        vector.copy_(self._multiply(vector))

    def _multiply_transpose_(self, vector: Tensor) -> None:
        vector.copy_(self._multiply_transpose(vector))

    def _checked(self, vector: Tensor) -> Tensor:
        if vector.shape != (self.num_params,) or not vector.is_floating_point():
            raise ValueError(
                f"BoundReparameterization: expected a real floating vector of shape "
                f"({self.num_params},), got shape {tuple(vector.shape)} and {vector.dtype}. Join "
                "the flattened tensors that the map was bound to, in their order."
            )
        return vector


@dataclass(frozen=True)
class BoundIdentity(BoundReparameterization):
    """The map that changes nothing."""

    num_params: int

    def inverse(self) -> "BoundIdentity":
        """Return the map itself."""
        return self

    def _on_shards(self, holdings: Holdings) -> "BoundIdentity":
        return BoundIdentity(holdings.num_local)

    def _multiply(self, vector: Tensor) -> Tensor:
        return vector.clone()

    _multiply_transpose = _multiply
    _multiply_transpose_squared = _multiply

    def _multiply_(self, vector: Tensor) -> None:
        pass

    _multiply_transpose_ = _multiply_


@dataclass(frozen=True)
class BoundSelection(BoundReparameterization):
    """A bound map of some of the tensors; the others are left as they are."""

    bound: BoundReparameterization
    sizes: tuple[int, ...]
    selected: tuple[bool, ...]

    @property
    def num_params(self) -> int:  # type: ignore[override]  # that of all tensors
        """Number of parameters d."""
        return sum(self.sizes)

    def inverse(self) -> "BoundSelection":
        """Invert the map."""
        return BoundSelection(self.bound.inverse(), self.sizes, self.selected)

    def _on_shards(self, holdings: Holdings) -> "BoundSelection":
        chosen = holdings.select([i for i, each in enumerate(self.selected) if each])
        sizes = tuple(holdings.local_sizes)
        return BoundSelection(self.bound.on_shards(chosen), sizes, self.selected)

    def _multiply(self, vector: Tensor) -> Tensor:
        return self._scatter(vector, self.bound._multiply(self._gather(vector)))

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self._scatter(vector, self.bound._multiply_transpose(self._gather(vector)))

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self._scatter(vector, self.bound._multiply_transpose_squared(self._gather(vector)))

    def _gather(self, vector: Tensor) -> Tensor:
        """Join the selected tensors."""
        return torch.cat(list(compress(vector.split_with_sizes(self.sizes), self.selected)))

    def _scatter(self, vector: Tensor, changed: Tensor) -> Tensor:
        """Copy the vector with the selected tensors taken from ``changed``."""
        result = vector.clone()
        targets = compress(result.split_with_sizes(self.sizes), self.selected)
        parts = changed.split_with_sizes(tuple(compress(self.sizes, self.selected)))
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part)
        return result


@dataclass(frozen=True)
class BoundComposition(BoundReparameterization):
    """One bound map after another: theta = outer(inner(phi))."""

    outer: BoundReparameterization
    inner: BoundReparameterization

    @property
    def num_params(self) -> int:  # type: ignore[override]  # that of the parts
        """Number of parameters d."""
        return self.outer.num_params

    def inverse(self) -> "BoundComposition":
        """Invert the map."""
        return BoundComposition(self.inner.inverse(), self.outer.inverse())

    def _on_shards(self, holdings: Holdings) -> "BoundComposition":
        return BoundComposition(self.outer.on_shards(holdings), self.inner.on_shards(holdings))

    def _multiply(self, vector: Tensor) -> Tensor:
        return self.outer._multiply(self.inner._multiply(vector))

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self.inner._multiply_transpose(self.outer._multiply_transpose(vector))

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        middle = self.outer._multiply_transpose_squared(vector)
        return self.inner._multiply_transpose_squared(middle)

    def _multiply_(self, vector: Tensor) -> None:
        self.inner._multiply_(vector)
        self.outer._multiply_(vector)

    def _multiply_transpose_(self, vector: Tensor) -> None:
        self.outer._multiply_transpose_(vector)
        self.inner._multiply_transpose_(vector)


@dataclass(frozen=True)
class BoundGathering(BoundReparameterization):
    """Any map, on shards: each rank gathers whole vectors, and computes the whole product."""

    bound: BoundReparameterization
    holdings: Holdings

    @property
    def num_params(self) -> int:  # type: ignore[override]  # those of a shard
        """Number of entries of this rank's shard."""
        return self.holdings.num_local

    def inverse(self) -> "BoundGathering":
        """Invert the map."""
        return BoundGathering(self.bound.inverse(), self.holdings)

    def _multiply(self, vector: Tensor) -> Tensor:
        return self._each(vector, self.bound._multiply)

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self._each(vector, self.bound._multiply_transpose)

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self._each(vector, self.bound._multiply_transpose_squared)

    def _each(self, vector: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        return self.holdings.shard_of(multiply(self.holdings.gather(vector)))
