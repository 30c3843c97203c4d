"""Whether an optimizer's state is finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_linf.functional.shards import local


def poisoned_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> str | None:
    """Name a tensor of an optimizer's state, or of this rank's shards of it, with inf or NaN.

    A momentum that holds a NaN keeps it: it decays to nothing else.
    """
    named = [
        (f"{key} of {name}", local(value))
        for name, p in parameters.items()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_device.setdefault(tensor.device, []).append((name, tensor))
    for tensors in by_device.values():  # one synchronisation for each
        finite = torch.stack([tensor.isfinite().all() for _, tensor in tensors]).tolist()
        for (name, _), is_finite in zip(tensors, finite, strict=True):
            if not is_finite:
                return name
    return None
