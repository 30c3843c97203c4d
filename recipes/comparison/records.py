"""The record of a comparison, its `comparison.json`: how it is written, and read by quantity.

A quantity is read as a list with one value for each seed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lightning_linf.report.files import write_atomically

Record = Mapping[str, Any]  # a comparison.json, or one variant in it


@rank_zero_only
def write_json(path: Path, content: Any, allow_nan: bool = False) -> None:
    """Write a file that holds the old content or all of the new, even if this is interrupted."""
    text = json.dumps(content, indent=1, allow_nan=allow_nan) + "\n"
    write_atomically(path, text, "name: expected the file of results")


def losses(variant: Record, which: str = "seeds") -> list[Any]:
    """Read the training loss of every seed, or of every one "shaken", None where it diverged."""
    return [outcome["train_loss"] for outcome in variant[which]]


def label(variant: Record) -> str:
    """Name a variant in a sentence."""
    words = {"coordinate": "Adam", "coordinate, rotated": "rotated Adam"}
    if variant["optimizer"] == "adam":
        return words.get(variant["geometry"], f"Adam ({variant['geometry']})")
    if variant["optimizer"] == "blockwise_adam":
        return f"blockwise Adam ({variant['geometry']})"
    name = {"adasgd": "AdaSGD", "sgd": "SGD"}[variant["optimizer"]]
    return f"rotated {name}" if variant["rotation"] else name


def why_not(variant: Record) -> str | None:
    """Say why nothing is concluded of a variant; None if something may be."""
    if variant["is_end"]:
        return f"the best rate of {label(variant)}, {variant['lr']:g}, is an end of those tried"
    ended = losses(variant)
    if None in ended:
        return f"{label(variant)} diverged with {ended.count(None)} of {len(ended)} seeds"
    return None


def above(variant: Record, other: Record, which: str = "seeds") -> list[float]:
    """Subtract the training losses of two variants, seed by seed, where neither diverged."""
    pairs = zip(losses(variant, which), losses(other, which), strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def ends(variant: Record, quantity: str) -> list[Any]:
    """Read a quantity at the end of every seed that did not diverge."""
    return [
        outcome["geometry"][-1][quantity]
        for outcome in variant["seeds"]
        if outcome["train_loss"] is not None
    ]


def own_smoothness(variant: Record) -> list[float]:
    """Read H(Phi) / d for the optimizer's own partition Phi, where each of its runs ended."""
    return [smoothness[variant["partition"]] for smoothness in ends(variant, "smoothness")]


def smoothness_at(adam: Record, variant: Record) -> list[float]:
    """Read H(Phi) / d for a variant's partition and coordinates, where Adam's runs ended."""
    if variant["rotation"] and variant["partition"] == "coordinate":
        return [rotated[variant["rotation"]] for rotated in ends(adam, "rotated")]
    # The partition "global" is one block, whose smoothness no rotation changes.
    return [smoothness[variant["partition"]] for smoothness in ends(adam, "smoothness")]
