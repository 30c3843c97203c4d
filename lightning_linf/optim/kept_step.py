"""What a prepared step rests on, so that it is prepared again only if some of that differs."""

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_linf.distributed.shards import are_sharded_unlike, local
from lightning_linf.kernels import runs_kernels

_PLAIN = (nn.Parameter, Tensor)


def tensors_and_groups(optimizer: Optimizer) -> list[Hashable] | None:
    """List what tensors a step reads and writes, and what its form depends on.

    Numbers among the hyperparameters are not in it: a step reads them anew. The list keeps nothing
    alive, so it holds only together with the tensors and groups that it was made of.

    Returns:
        The list, or None if there is a gradient that a step has to convert first.
    """
    found: list[Hashable] = []
    is_interpreted = runs_kernels(torch.device("cpu"))
    for group in optimizer.param_groups:
        lr = group["lr"]
        place = lr.device if isinstance(lr, Tensor) else None
        found += (id(group), group["foreach"], group.get("capturable"), place)
        for p in group["params"]:
            g = p.grad
            if g is None:
                found.append(None)
                continue
            if g.layout is not torch.strided:
                return None
            values = list(optimizer.state.get(p, {}).values())
            found += (id(p), *map(id, values))
            is_part = type(p) not in _PLAIN
            if is_part:  # a rank's, of which torch makes a new view each time
                if are_sharded_unlike(p, g):
                    return None
                p, g, *values = [local(t) for t in (p, g, *values) if isinstance(t, Tensor)]
            found += (p.dtype, p.device, p.shape, p.stride())
            found += (g.dtype, g.device, g.shape, g.stride())
            if is_part or p.is_cuda or is_interpreted:  # kernels have addresses in tables
                found.append(p.data_ptr())
                for value in values:
                    if isinstance(value, Tensor):
                        found += (value.data_ptr(), value.dtype)
    return found
