"""The ranks that share some parameters, and what each has of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_linf.distributed.all_to_all import AllToAll, group_of, remember_group
from lightning_linf.distributed.shards import is_sharded, sharded_over

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Box = tuple[tuple[int, ...], tuple[int, ...]]  # first indices, and sizes, in each dimension


def sharing(tensors: Sequence[Tensor]) -> AllToAll | None:
    """Say which ranks have different parts of the tensors, by the function that they send with.

    Ranks with copies of all that this one has, as with HSDP, are not among them: they do the same
    among themselves. None: this rank has everything whole.
    """
    sharded = [each for each in tensors if is_sharded(each) and sharded_over(each)]
    if not sharded:
        return None
    sets = {_ranks(each): each for each in sharded}
    ranks = max(sets, key=len)
    if len(ranks) == 1:
        return None
    if not all(set(each) <= set(ranks) for each in sets):
        # One tensor is sharded over one dimension of a mesh, another one over another dimension.
        ranks = tuple(range(torch.distributed.get_world_size()))
    elif len(dims := sharded_over(sets[ranks])) == 1:
        remember_group(ranks, sets[ranks].device_mesh.get_group(dims[0]))
    return AllToAll(ranks, sharded[0].device_mesh.device_type)


def boxes_by_rank(tensors: Sequence[Tensor], ranks: tuple[int, ...]) -> list[list[list[Box]]]:
    """Gather what each of some ranks has of each tensor, as boxes of indices."""
    found: list[Any] = [None] * len(ranks)
    ours = [_boxes(each) for each in tensors]
    torch.distributed.all_gather_object(found, ours, group=group_of(ranks))
    return found


def _ranks(tensor: "DTensor") -> tuple[int, ...]:
    """Give the ranks with other parts of what this rank has a part of, and itself."""
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None  # every rank has a part
    over = sharded_over(tensor)
    ranks = mesh.mesh[
        tuple(slice(None) if dim in over else place for dim, place in enumerate(coordinate))
    ]
    return tuple(sorted(ranks.flatten().tolist()))


def _boxes(tensor: Tensor) -> list[Box]:
    if not is_sharded(tensor):
        return [((0,) * tensor.ndim, tuple(tensor.shape))]
    # What distributed checkpoints ask of a DTensor, too: it knows all kinds of placements.
    chunks = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]  # is torch's
    return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks]
