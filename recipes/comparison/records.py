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
    """Read H(Phi) / d for the optimizer's own partition Phi, where each of its runs ended."""
    return [smoothness[variant["partition"]] for smoothness in ends(variant, "smoothness")]


def smoothness_at(adam: Record, variant: Record) -> list[float]:
    """Read H(Phi) / d for a variant's partition and coordinates, where Adam's runs ended."""
    if variant["rotation"] and variant["partition"] == "coordinate":
        return [rotated[variant["rotation"]] for rotated in ends(adam, "rotated")]
    # The partition "global" is one block, whose smoothness no rotation changes.
    return [smoothness[variant["partition"]] for smoothness in ends(adam, "smoothness")]
