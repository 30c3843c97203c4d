"""Second moments of blocks in a saved state of an optimizer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.functional.shards import is_sharded
from lightning_linf.optim.unit import Unit

_OPTIONS = {"lr", "betas", "eps", "weight_decay", "eps_inside", "maximize", "capturable"}
KEYS = ("exp_avg_sq", "exp_avg_sq_step")  # in the state of a unit's owner


def check_saved(
    optimizer: str, units: Sequence[Unit], groups: Sequence[Any], saved: dict[str, Any]
) -> None:
    """Raise a ValueError if the saved second moments are those of another partition.

    A state without any, as of another optimizer, passes.
    """
    for ours, theirs in zip(groups, saved["param_groups"], strict=False):
        missing = ours.keys() - theirs.keys() - {"params", "param_names", "initial_lr"}
        if missing & _OPTIONS:
            raise ValueError(
                f"{optimizer}.load_state_dict: expected the state of an optimizer of this class, "
                f"got one without {', '.join(sorted(missing & _OPTIONS))}. Change optimizers by "
                "carry_state."
            )
    states = dict(_pairs(groups, saved))
    if not any("exp_avg_sq" in state for state in states.values()):
        return
    for unit in units:
        for p in unit.params:
            state = states.get(p, {})
            if "exp_avg" in state and is_sharded(state["exp_avg"]) != is_sharded(p):
                raise ValueError(
                    f"{optimizer}.load_state_dict: expected a state that is sharded as its "
                    f"parameters are, got a {'sharded' if is_sharded(p) else 'whole'} parameter "
                    "with another state. Load it by set_optimizer_state_dict of "
                    "torch.distributed.checkpoint.state_dict."
                )
            shape = tuple(unit.state_shape) if p is unit.owner else None
            if not state and shape is None:
                continue
            got = tuple(state["exp_avg_sq"].shape) if "exp_avg_sq" in state else None
            if unit.is_identity and got == (p.numel(),):
                got = shape  # as they were saved once
            has_moments = any(states.get(other) for other in unit.params)
            if got != (shape if has_moments else None):
                raise ValueError(
                    f"{optimizer}.load_state_dict: expected for a parameter of shape "
                    f"{tuple(p.shape)} {_words(shape)}, got {_words(got)}. Load the state of an "
                    "optimizer with the same partition."
                )


def restore_saved(units: Sequence[Unit], groups: Sequence[Any], state: Any, saved: Any) -> None:
    """Set second moments and their counts again, which torch casts to the parameters' dtype."""
    exact = dict(_pairs(groups, saved))
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


def _pairs(groups: Sequence[Any], saved: dict[str, Any]) -> Iterator[tuple[Tensor, Any]]:
    """Every parameter with a saved state, and that; groups of other sizes are torch's to refuse."""
    ids = [index for group in saved["param_groups"] for index in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for index, p in zip(ids, params, strict=False):
        if index in saved["state"]:
            yield p, saved["state"][index]


def _words(shape: tuple[int, ...] | None) -> str:
    return "no exp_avg_sq" if shape is None else f"exp_avg_sq of shape {shape}"
