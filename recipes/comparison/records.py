"""What a comparison left in its comparison.json, read by quantity: one value a seed."""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]  # a comparison.json, or one variant in it


def losses(variant: Record) -> list[Any]:
    """Read the training loss of every seed, None where it diverged."""
    return [outcome["train_loss"] for outcome in variant["seeds"]]


def ends(variant: Record, quantity: str) -> list[Any]:
    """Read a quantity at the end of every seed that did not diverge."""
    return [
        outcome["geometry"][-1][quantity]
        for outcome in variant["seeds"]
        if outcome["train_loss"] is not None
    ]


def own_smoothness(variant: Record) -> list[float]:
    """Read H(Phi) / d of the partition that the optimizer has, at the end of every seed."""
    return [smoothness[variant["partition"]] for smoothness in ends(variant, "smoothness")]


def smoothness_at(adam: Record, variant: Record) -> list[float]:
    """Read H(Phi) / d of a variant's geometry where Adam's run of every seed ended."""
    if variant["rotation"] and variant["partition"] == "coordinate":  # one block: as unrotated
        return [rotated[variant["rotation"]] for rotated in ends(adam, "rotated")]
    return [smoothness[variant["partition"]] for smoothness in ends(adam, "smoothness")]
