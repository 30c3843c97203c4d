"""The optimizers that a comparison has, in the words of its table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STRENGTHS = (0.25, 0.5, 1.0)  # of a global rotation


@dataclass(frozen=True)
class Variant:
    """An optimizer, in the words of the table, and its learning rates as multiples of ``lr``."""

    optimizer: str
    geometry: str
    choices: Mapping[str, Any] = field(hash=False)
    factors: tuple[float, ...]

    @property
    def partition(self) -> str:
        """The partition Phi of its second moments; SGD, which has none, goes with `global`."""
        if self.optimizer == "blockwise_adam":
            return str(self.choices["partition"])
        return "coordinate" if self.optimizer == "adam" else "global"

    @property
    def label(self) -> str:
        """Optimizer and geometry in one string."""
        return f"{self.optimizer} ({self.geometry})"


def _rotated_adam(scope: str, strength: float = 1.0) -> Variant:
    words = ["coordinate, rotated"]
    words += [scope] if scope != "global" else []
    words += [f"{strength:g}"] if strength != 1 else []
    choices = {"optimizer": "adam", "rotation": scope, "rotation_strength": strength}
    return Variant("adam", " ".join(words), choices, (1 / 3, 1, 3))


def _blockwise_adam(partition: str) -> Variant:
    choices = {"optimizer": "blockwise_adam", "partition": partition}
    return Variant("blockwise_adam", partition, choices, (1 / 3, 1, 3))


ADAM = Variant("adam", "coordinate", {"optimizer": "adam"}, (1 / 3, 1, 3))
ROTATED_ADAM = _rotated_adam("global")
ADASGD = Variant("adasgd", "global", {"optimizer": "adasgd"}, (1, 3, 9))
SGD = Variant("sgd", "global, l2", {"optimizer": "sgd"}, (100, 300, 900))
ROTATED_SGD = Variant(
    "sgd", "global, l2, rotated", {"optimizer": "sgd", "rotation": "global"}, SGD.factors
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
