"""Tensors of which every rank holds a part (DTensor, as ``fully_shard`` makes parameters)."""

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, whose shape is that of the whole."""
    return hasattr(tensor, "placements")  # its module is not there in builds without distributed


def local_part(tensor: Tensor) -> Tensor:
    """Give what this rank holds of a tensor: a view, perhaps without entries."""
    sharded: Any = tensor
    part: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return part


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor on every rank. All ranks of its mesh must call this."""
    sharded: Any = tensor
    whole: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return whole


def part_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Cut from a whole tensor, which every rank has, the part that this rank holds of another."""
    if not is_sharded(tensor):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = tensor
    mesh = sharded.device_mesh
    same_everywhere = [Replicate()] * mesh.ndim
    replicated = DTensor.from_local(whole, mesh, same_everywhere, run_check=False)
    return local_part(replicated.redistribute(placements=sharded.placements))


def is_counted_here(tensor: Tensor) -> bool:
    """Whether this rank is the first of those that hold the same part of a DTensor."""
    sharded: Any = tensor
    coordinate = sharded.device_mesh.get_coordinate()
    return all(
        place == 0
        for place, placement in zip(coordinate, sharded.placements, strict=True)
        if placement.is_replicate()
    )
