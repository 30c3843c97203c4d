"""Checks of saved states.

``groups`` are the parameter groups of the optimizer that loads the state, ``saved`` is the state as
:meth:`torch.optim.Optimizer.state_dict` returns it, and ``optimizer`` a class name, for errors.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.distributed.shards import is_sharded

Saved = dict[str, Any]
COUNTS = ("step", "exp_avg_sq_step")  # numbers of updates, in the state of a parameter
# Parts of parameter names that DDP, torch.compile and the like put there.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def with_own_names(
    groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Replace the parameter names in saved groups by those of the optimizer, if it has any."""
    named = []
    for ours, theirs in zip(groups, saved_groups, strict=True):
        group = {key: value for key, value in theirs.items() if key != "param_names"}
        own = {"param_names": ours["param_names"]} if "param_names" in ours else {}
        named.append({**group, **own})
    return named


def has_these_groups(groups: Sequence[Mapping[str, Any]], saved: Saved) -> bool:
    """Tell whether a saved state has groups of the same sizes; torch refuses it otherwise."""
    ours, theirs = (
        [len(group["params"]) for group in each] for each in (groups, saved["param_groups"])
    )
    return ours == theirs


def saved_entries(
    groups: Sequence[Mapping[str, Any]], saved: Saved
) -> Iterator[tuple[Any, Tensor, dict[str, Any]]]:
    """Yield, for every parameter with a saved state, its key there, itself, and that state."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for index, p in zip(indices, params, strict=True):
        if index in saved["state"]:
            yield index, p, saved["state"][index]


def check_names(optimizer: str, groups: Sequence[Mapping[str, Any]], saved: Saved) -> None:
    """Raise a ValueError if a parameter stands at another place than the one of its name.

    A name that only one side knows is no error: torch goes by the order, and parameters may have
    been renamed.
    """
    ours, theirs = (
        [_bare(name) for group in each for name in group.get("param_names", ())]
        for each in (groups, saved["param_groups"])
    )
    places = {name: place for place, name in enumerate(ours)}
    if len(ours) != len(theirs) or len(places) != len(ours):
        return
    for place, name in enumerate(theirs):
        if places.get(name, place) != place:
            raise ValueError(
                f"{optimizer}.load_state_dict: expected {ours[place]} as parameter {place}, got "
                f"{name}. Give the optimizer its parameters in the order of the run that saved "
                "the state."
            )


def check_shape(
    optimizer: str,
    groups: Sequence[Mapping[str, Any]],
    p: Tensor,
    key: str,
    value: Any,
    shape: torch.Size | None = None,
) -> None:
    """Raise a ValueError unless an entry of a parameter's saved state has the expected shape.

    Args:
        optimizer: Name of the class.
        groups: Its parameter groups.
        p: The parameter.
        key: Name of the entry, such as ``"exp_avg"``.
        value: The entry.
        shape: The expected shape. Default: that of the parameter; the entry must then be sharded
            as the parameter is, too.
    """
    expected = p.shape if shape is None else shape
    got: Any = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if isinstance(value, Tensor) and value.layout != torch.strided:
        got = f"a tensor of layout {value.layout}"
    if got != tuple(expected):
        raise ValueError(
            f"{optimizer}.load_state_dict: expected `{key}` of shape {tuple(expected)} for "
            f"{place_of(groups, p)}, got {got}. Load the state of the same parameters in the same "
            "order."
        )
    if shape is None and _sharding(value) != _sharding(p):
        ours, theirs = (_sharding(each) or "whole" for each in (p, value))
        raise ValueError(
            f"{optimizer}.load_state_dict: expected a state that is sharded as its parameters are, "
            f"got `{key}` {theirs} for {place_of(groups, p)}, {ours}. Load it by "
            "set_optimizer_state_dict of torch.distributed.checkpoint.state_dict."
        )


def place_of(groups: Sequence[Mapping[str, Any]], p: Tensor) -> str:
    """Describe a parameter for an error: its number, its name if it has one, and its shape."""
    params = [each for group in groups for each in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    number = next(number for number, each in enumerate(params) if each is p)
    name = f" ({names[number]})" if names else ""
    return f"parameter {number}{name} of shape {tuple(p.shape)}"


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _sharding(tensor: Tensor) -> Any:
    return (tensor.placements, tensor.device_mesh) if is_sharded(tensor) else None
