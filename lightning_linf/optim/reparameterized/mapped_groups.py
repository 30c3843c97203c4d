"""The parameter groups of an inner optimizer, which steps coordinates ``phi`` of the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_linf.optim.reparameterized.mapped_tensors import MappedTensors, check_thetas
from lightning_linf.reparam import Reparameterization

# Entries of a parameter group that the outer and the inner optimizer each have their own of.
NOT_SHARED = ("params", "reparameterization")


def map_groups(
    reparameterization: Reparameterization, groups: Sequence[dict[str, Any]], first: int = 0
) -> tuple[list[dict[str, Any]], list[MappedTensors], list[tuple[Tensor, Tensor]]]:
    """Map parameter groups, each by its own part of a map.

    Args:
        reparameterization: The map.
        groups: All groups of the outer optimizer. Each gets the entry ``reparameterization``, which
            is saved with its state to tell the coordinates of that.
        first: Number of the first group to map; those before it have been mapped already.

    Returns:
        The groups for the inner optimizer; the mapped tensors of each group that has any; and for
        every parameter, the pair of itself and the tensor that the inner optimizer steps for it.

    Raises:
        ValueError: If the map, or :func:`check_thetas`, refuses the parameters.
    """
    mapped_tensors = _mapped_tensors(reparameterization, groups, first)
    phi_of = {
        theta: phi
        for mapped in mapped_tensors
        for theta, phi in zip(mapped.thetas, mapped.phis, strict=True)
    }
    inner_groups, pairs = [], []
    for group in groups[first:]:
        phis = [phi_of.get(theta, theta) for theta in group["params"]]
        pairs += list(zip(group["params"], phis, strict=True))
        inner = {k: v for k, v in group.items() if k not in (*NOT_SHARED, "param_names")}
        names = group.get("param_names")
        inner["params"] = phis if names is None else list(zip(names, phis, strict=True))
        inner_groups.append(inner)
        num_mapped = sum(theta in phi_of for theta in group["params"])
        group["reparameterization"] = (
            f"{num_mapped} of {len(phis)} tensors in {reparameterization!r}"
        )
    return inner_groups, mapped_tensors, pairs


def _mapped_tensors(
    reparameterization: Reparameterization, groups: Sequence[dict[str, Any]], first: int
) -> list[MappedTensors]:
    thetas = [theta for group in groups for theta in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    selected = dict(
        zip(thetas, reparameterization.selects(names or None, len(thetas)), strict=True)
    )
    found = []
    for stream, group in enumerate(groups[first:], first):
        places = [
            i for i, theta in enumerate(group["params"]) if selected[theta] and theta.requires_grad
        ]
        if not places:
            continue
        chosen = [group["params"][i] for i in places]
        check_thetas(chosen)
        bound = reparameterization.bind(
            [theta.shape for theta in chosen],
            [group["param_names"][i] for i in places] if names else None,
            stream=stream,
        )
        with torch.no_grad():
            found.append(MappedTensors(chosen, bound, reparameterization.mixes_tensors))
    return found


def check_inner(inner: Any, num_groups: int, phis: Sequence[Tensor]) -> None:
    """Raise a ValueError unless a factory has made an optimizer of exactly what it was given."""
    got: Any = None
    if isinstance(inner, Optimizer):
        got = [id(phi) for group in inner.param_groups for phi in group["params"]]
    if got != [id(phi) for phi in phis] or len(inner.param_groups) != num_groups:
        raise ValueError(
            "Reparameterized: expected `factory` to make a torch.optim.Optimizer of the "
            "parameters it is given, in their order and groups, got "
            f"{'one of others' if got is not None else type(inner).__name__}. "
            "Return, say, torch.optim.AdamW(params, lr=1e-3)."
        )


def check_known(groups: Sequence[dict[str, Any]], known: int, thetas: Sequence[Tensor]) -> None:
    """Raise a RuntimeError unless the first groups still hold the parameters that were mapped."""
    ours = [id(p) for group in groups[:known] for p in group["params"]]
    if ours != [id(theta) for theta in thetas]:
        raise RuntimeError(
            f"Reparameterized: expected the {known} parameter groups that it was made of, "
            "and perhaps others after them, got other parameters in them. Make a new "
            "Reparameterized with all groups."
        )


def add_groups(inner: Optimizer, groups: Sequence[dict[str, Any]]) -> None:
    """Add parameter groups to the inner optimizer: all, or none if it refuses one."""
    attributes, former = dict(vars(inner)), list(inner.param_groups)
    try:
        for group in groups:
            inner.add_param_group(group)
    except BaseException:
        vars(inner).update(attributes)
        inner.param_groups[:] = former
        raise
