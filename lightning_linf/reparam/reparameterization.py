"""A change of coordinates theta = A phi, before it is known which parameters it is of."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch

from lightning_linf.reparam.bound import (
    BoundComposition,
    BoundIdentity,
    BoundReparameterization,
    BoundSelection,
)


class Reparameterization(ABC):
    """A change of coordinates theta = A phi, before it is known which parameters it is of.

    Subclasses are immutable, and say in :meth:`_bind` what they do to tensors of given shapes.
    ``a @ b`` is one change of coordinates after another: theta = A (B phi).

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
            names: Of the tensors; needed if ``only`` is given. If it matches none of them, nothing
                changes and nothing is raised, as they may be a part of the parameters only, a
                parameter group, say. :meth:`selects` raises if it gets the names of all.
            stream: Random maps bound with different numbers are independent.

        Raises:
            ValueError: If names are missing, or a subclass cannot map tensors of these shapes.
        """
        selected = self._selected(names, len(shapes))
        sizes = [math.prod(shape) for shape in shapes]
        bound = self._bind([torch.Size(shape) for shape in compress(shapes, selected)], stream)
        if all(selected):
            return bound
        if not any(selected):
            return BoundIdentity(sum(sizes))
        return BoundSelection(bound, tuple(sizes), tuple(selected))

    def __matmul__(self, other: "Reparameterization") -> "Composition":
        if not isinstance(other, Reparameterization):
            return NotImplemented
        return Composition(self, other)

    def _selected(self, names: Sequence[str] | None, num_tensors: int) -> list[bool]:
        """Search ``only`` in the names. As :meth:`selects`, but it may match none of them."""
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
