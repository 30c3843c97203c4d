"""The optimizers that a comparison can have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STRENGTHS = (0.25, 0.5, 1.0)  # of a global rotation
_FACTORS = (0.5, 1, 2)


@dataclass(frozen=True)
class Variant:
    """An optimizer with its geometry.

    Args:
        optimizer: Its name in tables.
        geometry: Its blocks and coordinates in tables.
        choices: The fields of the config that select it.
        factors: The learning rates to try, as multiples of ``lr``.
        same_rate_as: Another variant, whose best rate it takes instead of trying its own.
    """

    optimizer: str
    geometry: str
    choices: Mapping[str, Any] = field(hash=False)
    factors: tuple[float, ...] = field(default=(), compare=False)
    same_rate_as: "Variant | None" = None

    @property
    def partition(self) -> str:
        """The partition Phi of its second moments; SGD, which has none, counts as `global`."""
        if self.optimizer == "blockwise_adam":
            return str(self.choices["partition"])
        return "coordinate" if self.optimizer == "adam" else "global"

    @property
    def rotation(self) -> tuple[str, float] | None:
        """Scope and strength of the rotation in whose coordinates it runs."""
        if "rotation" not in self.choices:
            return None
        return self.choices["rotation"], self.choices.get("rotation_strength", 1.0)


def _rotated_adam(scope: str, strength: float = 1.0) -> Variant:
    words = ["coordinate, rotated"]
    words += [scope] if scope != "global" else []
    words += [f"{strength:g}"] if strength != 1 else []
    choices = {"optimizer": "adam", "rotation": scope, "rotation_strength": strength}
    return Variant("adam", " ".join(words), choices, _FACTORS)


def _blockwise_adam(partition: str) -> Variant:
    choices = {"optimizer": "blockwise_adam", "partition": partition}
    return Variant("blockwise_adam", partition, choices, (1, 2, 4))


ADAM = Variant("adam", "coordinate", {"optimizer": "adam"}, _FACTORS)
ROTATED_ADAM = _rotated_adam("global")
ADASGD = Variant("adasgd", "global", {"optimizer": "adasgd"}, (1.5, 3, 6))
SGD = Variant("sgd", "global, l2", {"optimizer": "sgd"}, (75, 150, 300))
# It equals SGD up to rounding, so a sweep of its own would tell nothing.
ROTATED_SGD = Variant(
    "sgd", "global, l2, rotated", {"optimizer": "sgd", "rotation": "global"}, same_rate_as=SGD
)
FEW = (ADAM, ROTATED_ADAM, _blockwise_adam("tensor"), ADASGD, SGD)
ALL = (
    ADAM,
    *(_rotated_adam("global", strength) for strength in STRENGTHS),
    _rotated_adam("tensor"),
    *(_blockwise_adam(name) for name in ("row", "head", "tensor")),
    ADASGD,
    SGD,
    ROTATED_SGD,
)
CHOICES = {"few": FEW, "control": (*FEW, ROTATED_SGD), "all": ALL}
