"""Second moments of blocks in a saved state of an optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.optim.blockwise.block_set import Unit
from lightning_linf.optim.saved_state import (
    COUNTS,
    Saved,
    check_shape,
    place_of,
    saved_entries,
)

KEYS = ("exp_avg_sq", "exp_avg_sq_step")  # in the state of a unit's owner
_NUMBER = torch.Size([])


def check_saved(optimizer: str, units: Sequence[Unit], groups: Sequence[Any], saved: Saved) -> None:
    """Raise a ValueError if saved moments are those of other parameters or another partition.

    A state without second moments, as of another optimizer, passes.
    """
    states = {p: state for _, p, state in saved_entries(groups, saved)}
    has_squares = any("exp_avg_sq" in state for state in states.values())
    for unit in units:
        for p in unit.params:
            state = states.get(p, {})
            for key in (key for key in COUNTS if key in state):
                check_shape(optimizer, groups, p, key, state[key], _NUMBER)
            if not {"exp_avg", "step"}.isdisjoint(state):
                check_shape(optimizer, groups, p, "exp_avg", state.get("exp_avg"))
            if has_squares:
                _check_squares(optimizer, unit, groups, p, states)


def _check_squares(
    optimizer: str,
    unit: Unit,
    groups: Sequence[Any],
    p: Tensor,
    states: dict[Tensor, dict[str, Any]],
) -> None:
    state = states.get(p, {})
    shape = tuple(unit.state_shape) if p is unit.owner else None
    if not state and shape is None:
        return
    got = tuple(state["exp_avg_sq"].shape) if "exp_avg_sq" in state else None
    if unit.is_identity and got == (p.numel(),):
        got = shape  # as they were saved once
    elif unit.is_identity and got == shape and got is not None:
        check_shape(optimizer, groups, p, "exp_avg_sq", state["exp_avg_sq"])
    has_moments = any(states.get(other) for other in unit.params)
    if got != (shape if has_moments else None) or (got is None) != (KEYS[1] not in state):
        raise ValueError(
            f"{optimizer}.load_state_dict: expected for {place_of(groups, p)} {_words(shape)}, got "
            f"{_words(got)}. Load the state of an optimizer with the same partition, and of the "
            "same parameters in the same order."
        )


def restore_saved(units: Sequence[Unit], groups: Sequence[Any], state: Any, saved: Saved) -> None:
    """Set second moments and their counts again, which torch casts to the parameters' dtype."""
    exact = {p: entry for _, p, entry in saved_entries(groups, saved)}
    capturable = {p: group["capturable"] for group in groups for p in group["params"]}
    for unit in units:
        p = unit.owner
        if "exp_avg_sq" in exact.get(p, {}):
            v, count = (exact[p][key] for key in KEYS)
            v = v.to(p.device, unit.dtype).reshape(unit.state_shape)
            state[p]["exp_avg_sq"] = v.contiguous()
            state[p]["exp_avg_sq_step"] = count.to(p.device if capturable[p] else "cpu")


def zero_count(p: Tensor, group: dict[str, Any]) -> Tensor:
    """Count of the updates of a running mean: on the CPU, where reading it does not wait."""
    return torch.zeros((), dtype=torch.float32, device=p.device if group["capturable"] else "cpu")


def _words(shape: tuple[int, ...] | None) -> str:
    return "no exp_avg_sq" if shape is None else f"exp_avg_sq of shape {shape} and its count"
