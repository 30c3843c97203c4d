"""Parameters of which every rank holds a part: DTensors, as of ``fully_shard``."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor  # takes 0.6 s: imported where there are some


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Tell whether it is a DTensor."""
    return hasattr(tensor, "placements")


def is_flattened(tensor: Tensor) -> bool:
    """Tell whether torch's older FullyShardedDataParallel has put it into a flat one.

    It then has a shape of its own on every rank, and no sign of that but this private one.
    """
    return getattr(tensor, "_fsdp_flattened", False)


def local(tensor: Tensor) -> Tensor:
    """Give this rank's part, with the same memory, or the tensor itself if it is whole."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():  # else a view with a graph
        return tensor.to_local()


def local_grad(p: Tensor, grad: Tensor) -> Tensor:
    """Give the part of a gradient that belongs to this rank's part of its parameter."""
    if is_sharded(p) and is_sharded(grad) and p.placements != grad.placements:
        grad = grad.redistribute(placements=p.placements)  # as of tensor parallelism alone
    return local(grad)


def whole(tensor: Tensor) -> Tensor:
    """Gather all ranks' parts, or give the tensor itself if it is whole."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Share a tensor out as another one is; if all ranks have it whole, nothing is sent."""
    if not is_sharded(like):
        return whole(tensor)
    if is_sharded(tensor):
        return tensor.redistribute(placements=like.placements)
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    replicated = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=like.placements)


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """Make the tensor of which every rank has a part, shared out as another of its shape is."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def sum_over_ranks(params: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """Add up what the ranks have found for their parts of parameters.

    All numbers are sent in one packed tensor, for each mesh and each of its dimensions over which
    parameters are sharded. Ranks that hold the same part count once.

    Args:
        params: The parameters; those that are whole have nothing to add.
        parts: For each, a tensor of the same shape on every rank.
    """
    places: dict[tuple[DeviceMesh, tuple[int, ...]], list[int]] = defaultdict(list)
    for place, p in enumerate(params):
        if is_sharded(p):
            over = [d for d, placement in enumerate(p.placements) if not placement.is_replicate()]
            places[p.device_mesh, tuple(over)].append(place)
    sums = list(parts)
    for (mesh, dims), chosen in places.items():
        packed = torch.cat([parts[i].reshape(-1) for i in chosen])  # of the widest dtype
        device = packed.device
        if device.type != mesh.device_type:
            packed = packed.to(mesh.device_type)  # of offloaded ones
        for dim in dims:
            group = mesh.get_group(dim)
            torch.distributed.all_reduce(packed, group=group)
        split = packed.to(device).split_with_sizes([parts[i].numel() for i in chosen])
        for i, total in zip(chosen, split, strict=True):
            sums[i] = total.view(parts[i].shape).to(parts[i].dtype)
    return sums
