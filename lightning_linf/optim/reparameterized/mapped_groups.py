"""Parameter groups, and those of an optimizer that steps coordinates phi in their place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.optim.reparameterized.mapped_tensors import MappedTensors, check_thetas
from lightning_linf.reparam import Reparameterization

NOT_SHARED = ("params", "reparameterization")  # in a parameter group: each has its own


def map_groups(
    reparameterization: Reparameterization, groups: Sequence[dict[str, Any]], first: int = 0
) -> tuple[list[dict[str, Any]], list[MappedTensors], list[tuple[Tensor, Tensor]]]:
    """Map parameter groups, each by its own part of a map.

    Args:
        reparameterization: The map.
        groups: All groups. Each gets the entry ``reparameterization``, which is saved with the
            state and tells its coordinates.
        first: Number of the first one to map.

    Returns:
        The groups for the inner optimizer; a bundle for each group of which something is mapped;
        and every parameter with what the inner optimizer steps in its place.

    Raises:
        ValueError: If the map, or a bundle, refuses the parameters.
    """
    bundles = _bundles(reparameterization, groups, first)
    phi_of = {
        theta: phi
        for bundle in bundles
        for theta, phi in zip(bundle.thetas, bundle.phis, strict=True)
    }
    mapped, pairs = [], []
    for group in groups[first:]:
        phis = [phi_of.get(theta, theta) for theta in group["params"]]
        pairs += list(zip(group["params"], phis, strict=True))
        inner = {k: v for k, v in group.items() if k not in (*NOT_SHARED, "param_names")}
        names = group.get("param_names")
        inner["params"] = phis if names is None else list(zip(names, phis, strict=True))
        mapped.append(inner)
        num_mapped = sum(theta in phi_of for theta in group["params"])
        group["reparameterization"] = (
            f"{num_mapped} of {len(phis)} tensors in {reparameterization!r}"
        )
    return mapped, bundles, pairs


def _bundles(
    reparameterization: Reparameterization, groups: Sequence[dict[str, Any]], first: int
) -> list[MappedTensors]:
    thetas = [theta for group in groups for theta in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    selected = dict(
        zip(thetas, reparameterization.selects(names or None, len(thetas)), strict=True)
    )
    bundles = []
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
            bundles.append(MappedTensors(chosen, bound))
    return bundles
