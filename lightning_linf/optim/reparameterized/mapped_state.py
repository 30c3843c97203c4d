"""Saved states in coordinates ``phi``: checked, and turned into those of the inner optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer

from lightning_linf.optim.saved_state import (
    Saved,
    check_names,
    check_shape,
    saved_entries,
    with_own_names,
)

PREFIX = "phi."  # begins the names of state entries in coordinates phi
# Torch's optimizers whose state consists of tensors in the shape of the parameter, and of numbers.
_NUMBERS = ("step", "eta", "mu", "mu_product")
_ELEMENTWISE = (
    *(SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
    *(torch.optim.Rprop, torch.optim.ASGD),
)


def check_coordinates(groups: Sequence[Mapping[str, Any]], saved: Saved) -> None:
    """Raise a ValueError if a saved state is in other coordinates than those of the groups."""
    for group, theirs in zip(groups, saved["param_groups"], strict=False):
        got = theirs.get("reparameterization", "none")
        if got != group["reparameterization"]:
            raise ValueError(
                "Reparameterized: expected a state in the same coordinates, with "
                f"{group['reparameterization']}, got {got}. Resume with the map and the "
                "frozen parameters of the run that saved it, or change them with carry_state."
            )


def for_inner(
    inner: Optimizer,
    groups: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[Tensor, Tensor]],
    saved: Saved,
) -> Saved:
    """Turn a state of the outer optimizer into one that the inner one loads, without prefixes.

    Raises:
        ValueError: If the state is in the coordinates of the weights, or that of other parameters
            as told by their names, if any, or by their shapes. Of an inner optimizer that is not
            torch's, it is only known that entries in the shapes of the parameters have their order.
    """
    check_names("Reparameterized", groups, saved)
    mapped = {theta for theta, phi in pairs if phi is not theta}
    entries = {
        index: _without_prefix(entry) if theta in mapped else entry
        for index, theta, entry in saved_entries(groups, saved)
    }
    saved = {
        **saved,
        "state": {**saved["state"], **entries},
        "param_groups": with_own_names(inner.param_groups, saved["param_groups"]),
    }
    _check_shapes(inner, groups, saved)
    return saved


def _without_prefix(entry: Mapping[str, Any]) -> dict[str, Any]:
    if not all(name.startswith(PREFIX) for name in entry):
        raise ValueError(
            "Reparameterized: expected a state in coordinates phi, got one of the "
            f"parameters themselves ({', '.join(entry)}), as of a run that went on "
            "without the map. Load it into an optimizer without one, and change that by "
            "carry_state."
        )
    return {name.removeprefix(PREFIX): value for name, value in entry.items()}


def _check_shapes(inner: Optimizer, groups: Sequence[Mapping[str, Any]], saved: Saved) -> None:
    total = torch.Size([sum(p.numel() for group in groups for p in group["params"])])
    shapes: dict[str, list[tuple[torch.Size, Tensor, Tensor]]] = {}
    for _, p, entry in saved_entries(groups, saved):
        for key, value in entry.items():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(tensor, Tensor):
                    continue
                if type(inner) in _ELEMENTWISE:  # subclasses may keep more
                    shape = torch.Size([]) if key in _NUMBERS else None
                    check_shape("Reparameterized", groups, p, key, tensor, shape)
                elif type(inner) is LBFGS and tensor.ndim:
                    check_shape("Reparameterized", groups, p, key, tensor, total)
                elif tensor.ndim:
                    shapes.setdefault(key, []).append((p.shape, p, tensor))
    for key, found in shapes.items():  # shapes of entries that are not those of parameters pass
        if sorted(shape for shape, *_ in found) == sorted(t.shape for *_, t in found):
            for _, p, tensor in found:
                check_shape("Reparameterized", groups, p, key, tensor)
