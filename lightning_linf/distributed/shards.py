"""Parameters of which every rank holds a part: DTensors, such as ``fully_shard`` makes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor  # takes 0.6 s: imported only where needed


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Tell whether a tensor is a DTensor."""
    return hasattr(tensor, "placements")


def is_flattened(tensor: Tensor) -> bool:
    """Tell whether torch's older FullyShardedDataParallel has put a parameter into a flat one.

    Its shape then differs from rank to rank, and this private attribute is the only sign of it.
    """
    return getattr(tensor, "_fsdp_flattened", False)


def local(tensor: Tensor) -> Tensor:
    """Give this rank's part, as a view, or the tensor itself if it is not sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():  # otherwise the view would have a graph
        return tensor.to_local()


def are_sharded_unlike(p: Tensor, grad: Tensor) -> bool:
    """Say whether parts of a gradient are not those of its parameter, as in tensor parallelism."""
    return is_sharded(p) and is_sharded(grad) and p.placements != grad.placements


def local_grad(p: Tensor, grad: Tensor) -> Tensor:
    """Give the part of a gradient that belongs to this rank's part of its parameter."""
    if are_sharded_unlike(p, grad):
        assert is_sharded(p)
        assert is_sharded(grad)
        grad = grad.redistribute(placements=p.placements)
    return local(grad)


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """Make a tensor from the parts of all ranks, sharded as ``like``, which has its shape."""
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


def sharded_over(tensor: "DTensor") -> tuple[int, ...]:
    """Give the dimensions of the mesh along which ranks hold different parts of the tensor."""
    return tuple(d for d, each in enumerate(tensor.placements) if not each.is_replicate())


def on_mesh(tensor: Tensor, mesh: "DeviceMesh") -> Tensor:
    """Move a tensor to the device from which ranks can send: it may be offloaded to the CPU."""
    return tensor if tensor.device.type == mesh.device_type else tensor.to(mesh.device_type)


def is_counted_here(tensor: Tensor) -> bool:
    """Say whether this rank is the first of those that hold the same part of a DTensor."""
    assert is_sharded(tensor)
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None  # every rank has a part
    over = sharded_over(tensor)
    is_first = all(place == 0 for dim, place in enumerate(coordinate) if dim not in over)
    # A mesh may be one of several that together hold all ranks: with tensor parallelism, there is a
    # data-parallel mesh for each of its ranks. The one with rank 0 counts.
    return is_first and bool((tensor.device_mesh.mesh == 0).any())


def sum_over_ranks(params: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """Add up over ranks what each has computed from its parts of parameters.

    All numbers are sent in one packed tensor, for each mesh and each of its dimensions over which
    parameters are sharded. A part that several ranks hold counts once.

    Args:
        params: The parameters; for those that are not sharded nothing is added.
        parts: For each a tensor of the same shape on every rank: its part's squared norm, say.
    """
    places: dict[tuple[DeviceMesh, tuple[int, ...]], list[int]] = defaultdict(list)
    for place, p in enumerate(params):
        if is_sharded(p):
            places[p.device_mesh, sharded_over(p)].append(place)
    sums = list(parts)
    for (mesh, dims), chosen in places.items():
        flat = torch.cat([parts[i].reshape(-1) for i in chosen])  # in the widest dtype of all
        packed = on_mesh(flat, mesh)
        for dim in dims:
            torch.distributed.all_reduce(packed, group=mesh.get_group(dim))
        split = packed.to(flat.device).split_with_sizes([parts[i].numel() for i in chosen])
        for i, total in zip(chosen, split, strict=True):
            sums[i] = total.view(parts[i].shape).to(parts[i].dtype)
    return sums
