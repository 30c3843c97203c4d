"""Whether an optimizer's state is finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_linf.distributed.shards import local


def nonfinite_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> str | None:
    """Name a tensor of an optimizer's state, or of this rank's shards of it, with inf or NaN.

    A momentum that holds a NaN keeps it at every further step, whatever the gradients are.
    """
    named = {
        f"{key} of {name}": local(value)
        for name, p in parameters.items()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.is_floating_point() and key != "step"
    }
    if _are_finite([tensor for tensor in named.values() if tensor.numel() > 0]):
        return None
    return next(name for name, tensor in named.items() if not tensor.isfinite().all())


def _are_finite(tensors: list[Tensor]) -> bool:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    # The largest size of an entry keeps inf and NaN, and overflows never.
    largest = [torch.stack(torch._foreach_norm(group, math.inf)).max() for group in groups.values()]
    return all(math.isfinite(norm) for norm in largest)
