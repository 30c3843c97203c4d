"""Gather whole tensors from the shards of all ranks, and cut whole tensors into shards."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_linf.distributed.shards import is_sharded, local, on_mesh, sharded_over

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class _Cut(NamedTuple):
    """How a tensor is cut along one dimension: each rank of one mesh dimension has a slice."""

    mesh_dim: int
    dim: int
    sizes: tuple[int, ...]  # length along ``dim`` of the slice of each rank of ``mesh_dim``
    rank: int  # of this process among them

    def shapes(self, shape: torch.Size) -> list[tuple[int, ...]]:
        """Shapes of the slices of all ranks, for a whole tensor of ``shape``."""
        return [(*shape[: self.dim], size, *shape[self.dim + 1 :]) for size in self.sizes]


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Give the part of ``tensor`` that this rank would hold if it were sharded as ``like`` is.

    If ``tensor`` is an ordinary one, which all ranks have whole, nothing is sent, and the part may
    be a view of it. If ``like`` is not sharded, the part is the whole tensor.
    """
    if not is_sharded(like):
        return tensor.full_tensor() if is_sharded(tensor) else tensor
    if is_sharded(tensor):
        return local(tensor.redistribute(placements=like.placements))
    cut = _cut(like)
    if cut is not None:
        return tensor.narrow(cut.dim, sum(cut.sizes[: cut.rank]), cut.sizes[cut.rank])
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    replicated = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return local(replicated.redistribute(placements=like.placements))


def gather(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gather whole tensors from the parts that ranks hold; those that are not sharded stay.

    Tensors that are cut along one dimension are packed into one message for each mesh and dtype;
    others, which are rare, are gathered one by one.
    """
    result = list(tensors)
    alike: dict[Any, list[int]] = defaultdict(list)
    cuts: dict[int, _Cut] = {}
    for place, tensor in enumerate(tensors):
        if not is_sharded(tensor):
            continue
        cut = _cut(tensor)
        if cut is None:
            result[place] = tensor.full_tensor()
        else:
            cuts[place] = cut
            alike[tensor.device_mesh, cut.mesh_dim, tensor.dtype].append(place)
    for (mesh, mesh_dim, _), places in alike.items():
        shapes = [cuts[place].shapes(tensors[place].shape) for place in places]
        flat = torch.cat([local(tensors[place]).reshape(-1) for place in places])
        vectors = _exchange(on_mesh(flat, mesh), mesh.get_group(mesh_dim), shapes)
        parts = [
            _split(vector.to(flat.device), [of_ranks[rank] for of_ranks in shapes])
            for rank, vector in enumerate(vectors)
        ]
        for place, of_ranks in zip(places, zip(*parts, strict=True), strict=True):
            result[place] = torch.cat(of_ranks, dim=cuts[place].dim)
    return result


def _exchange(
    vector: Tensor, group: Any, shapes: Sequence[Sequence[tuple[int, ...]]]
) -> list[Tensor]:
    """Give every rank's vector: its flattened slices, joined, of shapes (tensors, ranks)."""
    lengths = [sum(map(math.prod, of_tensors)) for of_tensors in zip(*shapes, strict=True)]
    padded = vector.new_zeros(max(lengths))  # all ranks must send the same number of entries
    padded[: len(vector)] = vector
    received = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(received, padded, group=group)
    return [each[:length] for each, length in zip(received, lengths, strict=True)]


def _split(vector: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = vector.split_with_sizes([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _cut(tensor: "DTensor") -> _Cut | None:
    """Tell how a tensor is cut; None if it is cut in several dimensions or in an unusual way."""
    from torch.distributed.tensor import Shard

    over = sharded_over(tensor)
    placement = tensor.placements[over[0]] if len(over) == 1 else None
    if type(placement) is not Shard:  # subclasses of Shard cut in other ways
        return None
    mesh, dim = tensor.device_mesh, placement.dim % tensor.ndim
    length, num_ranks = tensor.shape[dim], mesh.size(over[0])
    most = -(-length // num_ranks)  # Shard is defined to cut as torch.chunk does
    ends = [min(length, rank * most) for rank in range(num_ranks + 1)]
    sizes = tuple(end - start for start, end in pairwise(ends))
    return _Cut(over[0], dim, sizes, mesh.get_local_rank(over[0]))
