"""Parameter groups of one optimizer, as those of another."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam
from lightning_linf.optim.signum import Signum

OF_ONE_OPTIMIZER = {"params", "param_names", "reparameterization"}  # in a parameter group
OF_ONE_CLASS = {"decoupled_weight_decay"}  # AdamW's groups have it, and it makes an Adam an AdamW
_VARIED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def arguments_of(kind: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """Give the arguments of a class but for the parameters, also those that it passes on."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        varied = {p.name for p in parameters.values() if p.kind in _VARIED}
        found = {**parameters, **found}
        found = {k: v for k, v in found.items() if k not in {"self", "params", *varied}}
        if not varied:
            break
    return found


def named_groups(optimizer: Optimizer, module: nn.Module) -> list[dict[str, Any]]:
    """Copy the groups, with named parameters if they all are the module's."""
    names = {id(p): name for name, p in module.named_parameters()}
    has_names = all(id(p) in names for group in optimizer.param_groups for p in group["params"])
    groups = []
    for group in optimizer.param_groups:
        copy = {key: value for key, value in group.items() if key not in OF_ONE_OPTIMIZER}
        copy["params"] = [(names[id(p)], p) if has_names else p for p in group["params"]]
        groups.append(copy)
    return groups


def has_two_betas(group: Mapping[str, Any]) -> bool:
    """Tell whether betas, if any, are the decay of a mean gradient and that of a mean square."""
    betas = group.get("betas")
    return betas is None or (isinstance(betas, (tuple, list)) and len(betas) == 2)


def betas_note(old: Optimizer, new: Optimizer) -> str:
    """Say whether a new optimizer could not take over the decays of means, for a log."""
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
    """Say whether weight decay means something else for a new optimizer, for a log."""
    before, after = is_decoupled(old), is_decoupled(new)
    if before == after or not any(group.get("weight_decay") for group in new.param_groups):
        return ""
    if after:
        return "; its weight decay is decoupled now, no longer a part of the gradient"
    return "; its weight decay is a part of the gradient now (L2), no longer decoupled"


def is_decoupled(optimizer: Optimizer) -> bool:
    """Tell whether weight decay is decoupled; of a class that does not say so, it is taken not."""
    inner = getattr(optimizer, "inner", optimizer)
    decoupled = (torch.optim.AdamW, BlockwiseAdam, Signum)
    return isinstance(inner, decoupled) or any(
        group.get("decoupled_weight_decay", False) for group in inner.param_groups
    )


def translated(
    group: Mapping[str, Any], kind: type[Optimizer], former: type[Optimizer]
) -> dict[str, Any]:
    """Keep the hyperparameters that a class has; momentum and beta1 stand for each other."""
    if kind is former:
        return dict(group)
    arguments = arguments_of(kind)
    default = arguments["betas"].default if "betas" in arguments else None
    if not has_two_betas(group):
        group = {k: v for k, v in group.items() if k != "betas"}
    if isinstance(default, tuple) and len(default) != 2:  # nor is it known what they are there
        del arguments["betas"]
    kept = {k: v for k, v in group.items() if k in arguments and k not in OF_ONE_CLASS}
    if "momentum" in arguments and "momentum" not in group and "betas" in group:
        kept["momentum"] = group["betas"][0]
    if "betas" in arguments and "betas" not in group and group.get("momentum"):
        kept["betas"] = (group["momentum"], default[1] if isinstance(default, tuple) else 0.999)
    return {"params": group["params"], **kept}
