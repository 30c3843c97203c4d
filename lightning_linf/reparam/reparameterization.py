"""A change of coordinates theta = A phi, before and after it is known of which parameters."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_linf.reparam.composition import Composition


class BoundReparameterization(ABC):
    """An invertible linear map A of vectors (d,): theta = A phi.

    The vector holds tensors of known shapes, flattened and joined in their order. Its gradient with
    respect to phi is ``apply_transpose(g)``, its Hessian ``A^T H A``. Results are new tensors with
    the dtype and device of the argument, and without a graph.

    Attributes:
        num_params: d.
    """

    num_params: int

    def apply(self, vector: Tensor) -> Tensor:
        """Multiply with A. Shapes: (d,) -> (d,)."""
        self._require(vector)
        with torch.no_grad():
            return self._multiply(vector)

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A. Shapes: (d,) -> (d,)."""
        self._require(vector)
        with torch.no_grad():
            return self._multiply_transpose(vector)

    def apply_transpose_squared(self, vector: Tensor) -> Tensor:
        """Multiply with the transpose of A's entrywise square: what second moments become.

        They are those of ``A^T g`` if the coordinates of ``g`` are uncorrelated and have second
        moments ``vector``. A rotation takes the expectation of its square over its random signs; a
        composition multiplies with the squares of its parts, which is the square of their product
        if at most one of them is a rotation, and its expectation if they have different seeds.
        Shapes: (d,) -> (d,).
        """
        self._require(vector)
        with torch.no_grad():
            return self._multiply_transpose_squared(vector)

    @abstractmethod
    def inverse(self) -> "BoundReparameterization":
        """Invert the map."""

    @abstractmethod
    def _multiply(self, vector: Tensor) -> Tensor: ...

    @abstractmethod
    def _multiply_transpose(self, vector: Tensor) -> Tensor: ...

    @abstractmethod
    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor: ...

    def _require(self, vector: Tensor) -> None:
        if vector.shape != (self.num_params,) or not vector.is_floating_point():
            raise ValueError(
                f"BoundReparameterization: expected a real floating vector of shape "
                f"({self.num_params},), got shape {tuple(vector.shape)} and {vector.dtype}. Join "
                "the flattened tensors that the map was bound to, in their order."
            )


class Reparameterization(ABC):
    """A change of coordinates theta = A phi, before it is known of which parameters.

    Subclasses are immutable, and say in :meth:`_bind` what they do to tensors of given shapes.

    Attributes:
        only: A regular expression, searched in the names of the parameters; those without a match
            keep their coordinates. None: all parameters change.
    """

    only: str | None

    @property
    def mixes_tensors(self) -> bool:
        """Whether an entry of phi may belong to several tensors."""
        return True

    def selects(self, names: Sequence[str] | None, num_tensors: int) -> list[bool]:
        """Say of each tensor whether its coordinates change.

        Args:
            names: Of the tensors, or None if they have none.
            num_tensors: How many tensors there are.

        Raises:
            ValueError: If there are more or fewer names than tensors, or ``only`` is given and
                there are no names, or it matches none of them.
        """
        selected = self._selected(names, num_tensors)
        if names and not any(selected) and self.only is not None:
            raise ValueError(
                f"{type(self).__name__}: expected `only` to match the name of a parameter, got "
                f"{self.only!r} for {_some(names)}. Mind that it is a regular expression, searched "
                "anywhere in the name."
            )
        return selected

    def bind(
        self, shapes: Sequence[torch.Size], names: Sequence[str] | None = None, *, stream: int = 0
    ) -> BoundReparameterization:
        """Make the map of vectors that hold tensors of these shapes, flattened and joined.

        Args:
            shapes: Of the tensors, in their order.
            names: Of the tensors; needed for ``only``. If it matches none of them, nothing
                changes: they may be a part of all parameters, for which :meth:`selects` speaks.
            stream: Random maps bound with different numbers are independent.

        Raises:
            ValueError: If names are missing, or what a subclass refuses.
        """
        selected = self._selected(names, len(shapes))
        sizes = [math.prod(shape) for shape in shapes]
        bound = self._bind([torch.Size(shape) for shape in compress(shapes, selected)], stream)
        if all(selected):
            return bound
        if not any(selected):
            return BoundIdentity(sum(sizes))
        return BoundSelection(bound, tuple(sizes), tuple(selected))

    def inverse(self) -> "Reparameterization":
        """Invert the map."""
        from lightning_linf.reparam.composition import Inverse  # which imports this module

        return Inverse(self)

    def __matmul__(self, other: "Reparameterization") -> "Composition":
        if not isinstance(other, Reparameterization):
            return NotImplemented
        from lightning_linf.reparam.composition import Composition  # which imports this module

        return Composition(self, other)

    def _selected(self, names: Sequence[str] | None, num_tensors: int) -> list[bool]:
        """Search ``only`` in the names."""
        owner = type(self).__name__
        if names is not None and len(names) != num_tensors:
            raise ValueError(
                f"{owner}: expected one name for each of {num_tensors} tensors, got {len(names)}."
            )
        if self.only is None:
            return [True] * num_tensors
        if names is None:
            raise ValueError(
                f"{owner}: expected names of the parameters to search `only` = {self.only!r} in, "
                "got none. Give named parameters, as of `named_parameters()`."
            )
        return [re.search(self.only, name) is not None for name in names]

    @abstractmethod
    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        """Make the map of the selected tensors alone."""


def check_pattern(only: str | None, owner: str) -> None:
    """Refuse what is not a regular expression."""
    try:
        if only is not None:
            re.compile(only)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{owner}: expected `only` to be a regular expression or None, got {only!r} ({error}). "
            "Write special characters after a backslash."
        ) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class BoundIdentity(BoundReparameterization):
    """The map that changes nothing."""

    num_params: int

    def inverse(self) -> "BoundIdentity":
        """Give itself."""
        return self

    def _multiply(self, vector: Tensor) -> Tensor:
        return vector.clone()

    _multiply_transpose = _multiply
    _multiply_transpose_squared = _multiply


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

    def _multiply(self, vector: Tensor) -> Tensor:
        return self._scatter(vector, self.bound._multiply(self._gather(vector)))

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self._scatter(vector, self.bound._multiply_transpose(self._gather(vector)))

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self._scatter(vector, self.bound._multiply_transpose_squared(self._gather(vector)))

    def _gather(self, vector: Tensor) -> Tensor:
        return torch.cat(list(compress(vector.split_with_sizes(self.sizes), self.selected)))

    def _scatter(self, vector: Tensor, changed: Tensor) -> Tensor:
        result = vector.clone()
        targets = compress(result.split_with_sizes(self.sizes), self.selected)
        parts = changed.split_with_sizes(tuple(compress(self.sizes, self.selected)))
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part)
        return result
