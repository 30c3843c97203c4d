"""Lightning's classes under both of its names, ``lightning`` and ``pytorch_lightning``.

Each package has classes of its own that are alike in all but identity: whoever asks for a Trainer,
a LightningModule, a strategy, a precision plugin or a logger means that of either. The second one
is looked for among what is imported already: if it is not there, nothing of it can be.
"""

import sys
from typing import Any, TypeVar

from typing_extensions import TypeIs

T = TypeVar("T")

# By root of one package, that of the other.
_TWIN_ROOTS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


def is_either(value: object, *kinds: type[T]) -> TypeIs[T]:
    """Whether a value is an instance of a class of ``lightning``, or of its twin."""
    return isinstance(value, either(*kinds))


def either(*kinds: type[T]) -> tuple[type[T], ...]:
    """Give classes of ``lightning`` with their twins, as far as these are imported."""
    return (*kinds, *(twin for kind in kinds if (twin := _twin(kind)) is not None))


def counterpart(kind: type[T], user: object) -> type[T]:
    """Give the class, or its twin where ``user`` is an instance or a class of the other package."""
    cls = user if isinstance(user, type) else type(user)
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    twin = _twin(kind) if roots & set(_TWIN_ROOTS.values()) else None
    return kind if twin is None else twin


def _twin(kind: type[T]) -> type[T] | None:
    root = ".".join(kind.__module__.split(".")[:2])
    module: Any = sys.modules.get(kind.__module__.replace(root, _TWIN_ROOTS[root], 1))
    return getattr(module, kind.__name__, None)
