"""Check and restore the second moments of blocks in a saved state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.optim.blockwise.block_set import BlockSet
from lightning_linf.optim.saved_state import (
    COUNTS,
    Saved,
    check_shape,
    place_of,
    saved_entries,
)

_KEYS = ("exp_avg_sq", "exp_avg_sq_step")  # in the state of a block set's owner
_NUMBER = torch.Size([])


def check_saved(
    optimizer: str, block_sets: Sequence[BlockSet], groups: Sequence[Any], saved: Saved
) -> None:
    """Raise a ValueError if saved moments are those of other parameters or another partition.

    A state without any second moments passes: a swap of optimizers loads one, and sets them then.
    """
    states = {p: state for _, p, state in saved_entries(groups, saved)}
    has_squares = any("exp_avg_sq" in state for state in states.values())
    for blocks in block_sets:
        for p in blocks.params:
            state = states.get(p, {})
            for key in (key for key in COUNTS if key in state):
                check_shape(optimizer, groups, p, key, state[key], _NUMBER)
            if not {"exp_avg", "step"}.isdisjoint(state):
                check_shape(optimizer, groups, p, "exp_avg", state.get("exp_avg"))
            if has_squares:
                _check_squares(optimizer, blocks, groups, p, states)


def _check_squares(
    optimizer: str,
    blocks: BlockSet,
    groups: Sequence[Any],
    p: Tensor,
    states: dict[Tensor, dict[str, Any]],
) -> None:
    state = states.get(p, {})
    shape = tuple(blocks.state_shape) if p is blocks.owner else None
    if not state and shape is None:
        return
    got = tuple(state["exp_avg_sq"].shape) if "exp_avg_sq" in state else None
    if blocks.is_identity and got == (p.numel(),):
        got = shape  # older versions saved them flat
    elif blocks.is_identity and got == shape and got is not None:
        check_shape(optimizer, groups, p, "exp_avg_sq", state["exp_avg_sq"])
    has_moments = any(states.get(other) for other in blocks.params)
    if got != (shape if has_moments else None) or (got is None) != (_KEYS[1] not in state):
        raise ValueError(
            f"{optimizer}.load_state_dict: expected for {place_of(groups, p)} {_words(shape)}, got "
            f"{_words(got)}. Load the state of an optimizer with the same partition, and of the "
            "same parameters in the same order."
        )


def restore_saved(
    block_sets: Sequence[BlockSet], groups: Sequence[Any], state: Any, saved: Saved
) -> None:
    """Set second moments and their counts as saved: torch casts them to the dtype of parameters."""
    exact = {p: entry for _, p, entry in saved_entries(groups, saved)}
    capturable = {p: group["capturable"] for group in groups for p in group["params"]}
    for blocks in block_sets:
        p = blocks.owner
        if "exp_avg_sq" in exact.get(p, {}):
            v, count = (exact[p][key] for key in _KEYS)
            v = v.to(p.device, blocks.dtype).reshape(blocks.state_shape)
            state[p]["exp_avg_sq"] = v.contiguous()
            state[p]["exp_avg_sq_step"] = count.to(p.device if capturable[p] else "cpu")


def _words(shape: tuple[int, ...] | None) -> str:
    return "no exp_avg_sq" if shape is None else f"exp_avg_sq of shape {shape} and its count"
