"""Loading a saved state: checked before anything changes, and undone as a whole if it fails.

Throughout, ``groups`` are the parameter groups of the optimizer that loads, and ``saved`` is a
state dict as :meth:`torch.optim.Optimizer.state_dict` returns it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_linf.distributed.shards import is_sharded

Saved = dict[str, Any]
COUNTS = ("step", "exp_avg_sq_step")  # numbers of updates, in the state of a parameter
# Parts of parameter names that DDP, torch.compile and the like put there.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def load_as_a_whole(
    optimizer: Optimizer,
    state_dict: Saved,
    prepare: Callable[[Saved], Saved],
    restore: Callable[[Saved], None] = lambda _: None,
) -> None:
    """Load a state as torch does, but leave the optimizer as it was if anything fails.

    Args:
        optimizer: The optimizer that loads. Its own code must not change state or groups in place
            before torch sets new ones: what is restored are the former objects.
        state_dict: The saved state.
        prepare: Checks the state, after the user's hooks, and returns it as torch is to load it.
        restore: Is called with what ``prepare`` returned, after torch has loaded it, to repair what
            torch has cast.
    """
    prepared: Saved = {}

    def before(_: Optimizer, final: Saved) -> Saved:
        prepared.update(prepare(final))
        return prepared

    # Registered last, so that hooks of the user, which may change the state, come before.
    hooks = [
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(lambda _: restore(prepared), prepend=True),
    ]
    former = dict(vars(optimizer))
    try:
        Optimizer.load_state_dict(optimizer, state_dict)
    except BaseException:
        vars(optimizer).update(former)
        raise
    finally:
        for hook in hooks:
            hook.remove()


def completed(
    optimizer: str,
    groups: Sequence[Mapping[str, Any]],
    saved: Saved,
    required: set[str],
    older: Mapping[str, Any],
) -> Saved:
    """Bring a saved state into the form of today's states.

    Hyperparameters that older versions lacked are filled in, counts of steps that were saved as
    numbers become tensors, and the names of parameters become those of the optimizer, since saved
    ones may have the prefix of a wrapper such as DDP.

    Args:
        optimizer: Name of the class, for errors.
        groups: Its parameter groups.
        saved: A state whose groups have the same sizes.
        required: Hyperparameters that every state of this class has had.
        older: Hyperparameters that states of older versions lack, each with the value that those
            versions behaved as if they had.

    Raises:
        ValueError: If required hyperparameters are missing, so the state is that of another class,
            or if named parameters are in another order.
    """
    for theirs in saved["param_groups"]:
        missing = required - theirs.keys()
        if missing:
            raise ValueError(
                f"{optimizer}.load_state_dict: expected the state of an optimizer of this class, "
                f"got one without {', '.join(sorted(missing))}. Change optimizers by carry_state."
            )
    check_names(optimizer, groups, saved)
    entries = {index: _with_counts(entry) for index, _, entry in saved_entries(groups, saved)}
    return {
        **saved,
        "state": {**saved["state"], **entries},
        "param_groups": [
            {**older, **theirs} for theirs in with_own_names(groups, saved["param_groups"])
        ],
    }


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
        optimizer: Name of the class, for errors.
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


def _with_counts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Have counts as float32 tensors: they may be saved as numbers, and bfloat16 stops at 256."""
    counts = {
        key: torch.as_tensor(entry[key], dtype=torch.float32)
        for key in COUNTS
        if isinstance(entry.get(key), (Tensor, int, float))
    }
    return {**entry, **counts}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _sharding(tensor: Tensor) -> Any:
    return (tensor.placements, tensor.device_mesh) if is_sharded(tensor) else None
