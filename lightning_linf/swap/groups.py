"""The parameter groups of one optimizer, turned into those of another class."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_linf.optim import Reparameterized
from lightning_linf.optim.weight_decay import is_decoupled

# Entries of parameter groups that belong to one optimizer object.
_OF_ONE_OPTIMIZER = {"params", "param_names", "reparameterization"}
# Entries that belong to one class: this one, in AdamW's groups, would turn an Adam into an AdamW.
_OF_ONE_CLASS = {"decoupled_weight_decay"}
# Learning rates that optimizers and schedulers keep in parameter groups.
_LEARNING_RATES = {"lr", "initial_lr", "max_lr", "min_lr", "swa_lr"}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def inner_of(optimizer: Optimizer) -> Optimizer:
    """Give the optimizer that steps: the inner one of a :class:`Reparameterized`, or itself."""
    return optimizer.inner if isinstance(optimizer, Reparameterized) else optimizer


def holds_mapped_state(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer without a map has loaded the state of one with a map."""
    return not isinstance(optimizer, Reparameterized) and any(
        "reparameterization" in group for group in optimizer.param_groups
    )


def arguments_of(kind: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """Give the arguments of a class beside the parameters, with those it passes to its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        variadic = {p.name for p in parameters.values() if p.kind in _VARIADIC}
        found = {**parameters, **found}
        found = {k: v for k, v in found.items() if k not in {"self", "params", *variadic}}
        if not variadic:
            break
    return found


def named_groups(optimizer: Optimizer, module: nn.Module) -> list[dict[str, Any]]:
    """Copy the parameter groups, with named parameters if all of them are the module's."""
    names = {id(p): name for name, p in module.named_parameters()}
    has_names = all(id(p) in names for group in optimizer.param_groups for p in group["params"])
    groups = []
    for group in optimizer.param_groups:
        copy = {key: value for key, value in group.items() if key not in _OF_ONE_OPTIMIZER}
        copy["params"] = [(names[id(p)], p) if has_names else p for p in group["params"]]
        groups.append(copy)
    return groups


def has_two_betas(group: Mapping[str, Any]) -> bool:
    """Tell whether betas, if any, are two: the decays of a mean gradient and of a mean square."""
    betas = group.get("betas")
    return betas is None or (isinstance(betas, (tuple, list)) and len(betas) == 2)


def translated(
    group: Mapping[str, Any], kind: type[Optimizer], former: type[Optimizer]
) -> dict[str, Any]:
    """Turn the hyperparameters of one class into those of another.

    Those that the class ``kind`` has are kept. A momentum becomes beta1, and the other way. Other
    than two betas are left out, since nobody knows what they mean.
    """
    if kind is former:
        return dict(group)
    arguments = arguments_of(kind)
    default = arguments["betas"].default if "betas" in arguments else None
    if not has_two_betas(group):
        group = {k: v for k, v in group.items() if k != "betas"}
    if isinstance(default, tuple) and len(default) != 2:
        del arguments["betas"]
    kept = {k: v for k, v in group.items() if k in arguments and k not in _OF_ONE_CLASS}
    if "momentum" in arguments and "momentum" not in group and "betas" in group:
        kept["momentum"] = group["betas"][0]
    if "betas" in arguments and "betas" not in group and group.get("momentum"):
        kept["betas"] = (group["momentum"], default[1] if isinstance(default, tuple) else 0.999)
    return {"params": group["params"], **kept}


def of_any_class(group: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what an optimizer of a class that is not known yet might take amiss."""
    dropped = _OF_ONE_CLASS if has_two_betas(group) else {"betas", *_OF_ONE_CLASS}
    return {key: value for key, value in group.items() if key not in dropped}


def keep_other_entries(old: Optimizer, new: Optimizer) -> None:
    """Keep what schedulers and users have added to parameter groups, such as ``initial_lr``."""
    former = inner_of(old)
    of_former = arguments_of(type(former)).keys() | former.defaults.keys()
    for theirs, ours in zip(old.param_groups, new.param_groups, strict=True):
        for key in theirs.keys() - ours.keys() - of_former - _OF_ONE_OPTIMIZER:
            ours[key] = theirs[key]


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rates in parameter groups, also those that schedulers keep there."""
    for group in optimizer.param_groups if factor != 1.0 else ():
        for key in _LEARNING_RATES & group.keys():
            group[key] = group[key] * factor


def betas_note(old: Optimizer, new: Optimizer) -> str:
    """Say, for the log, if betas or momentum could not be taken over."""
    for theirs, ours in zip(old.param_groups, new.param_groups, strict=True):
        if has_two_betas(theirs) and has_two_betas(ours):
            continue
        (former, before), (name, after) = map(_decays, (theirs, ours))
        if before and before != after:
            kept = f"{name}={after}" if name else "no momentum"
            return f"; it has {kept} of its own: {former}={before} may mean something else"
    return ""


def _decays(group: Mapping[str, Any]) -> tuple[str, Any]:
    return next(((key, group[key]) for key in ("betas", "momentum") if key in group), ("", None))


def decay_note(old: Optimizer, new: Optimizer) -> str:
    """Say, for the log, if weight decay means something else in the new optimizer."""
    before, after = _is_decoupled(old), _is_decoupled(new)
    if before == after or not any(group.get("weight_decay") for group in new.param_groups):
        return ""
    if after:
        return "; its weight decay is decoupled now, no longer a part of the gradient"
    return "; its weight decay is a part of the gradient now (L2), no longer decoupled"


def _is_decoupled(optimizer: Optimizer) -> bool:
    inner = inner_of(optimizer)
    return any(is_decoupled(inner, group) for group in inner.param_groups)
