"""Gather whole tensors from the shards of all ranks, and cut whole tensors into shards."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import working_together
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
    others, which are rare, are gathered one by one. In what ranks do together
    (:meth:`~lightning_linf.distributed.ranks.Ranks.together`) they first agree that each has the
    memory for all messages: one that ran out of it in the middle would leave the others waiting.
    """
    result = list(tensors)
    alike: dict[Any, list[int]] = defaultdict(list)
    cuts: dict[int, tuple[DTensor, _Cut]] = {}
    for place, tensor in enumerate(tensors):
        if not is_sharded(tensor):
            continue
        cut = _cut(tensor)
        if cut is None:
            result[place] = tensor.full_tensor()
        else:
            cuts[place] = tensor, cut
            alike[tensor.device_mesh, cut.mesh_dim, tensor.dtype].append(place)

    def prepare() -> list[_Message]:
        return [_Message([cuts[place] for place in places]) for places in alike.values()]

    ranks = working_together()
    messages = prepare() if ranks is None else ranks.together(prepare)
    for places, message in zip(alike.values(), messages, strict=True):
        for place, whole in zip(places, message.exchange(), strict=True):
            result[place] = whole
    return result


class _Message:
    """The parts of tensors that ranks of one dimension of a mesh send each other, and room for all.

    Args:
        cut_tensors: Tensors of one mesh and dtype, and how they are cut along that dimension.
    """

    def __init__(self, cut_tensors: Sequence[tuple["DTensor", _Cut]]) -> None:
        tensors, self._cuts = [each for each, _ in cut_tensors], [cut for _, cut in cut_tensors]
        first = tensors[0]
        self._device = local(first).device
        self._group = first.device_mesh.get_group(self._cuts[0].mesh_dim)
        by_tensor = [cut.shapes(each.shape) for each, cut in cut_tensors]
        self._shapes = list(zip(*by_tensor, strict=True))  # (ranks, tensors)
        self._lengths = [sum(map(math.prod, of_tensors)) for of_tensors in self._shapes]
        flat = torch.cat([local(each).reshape(-1) for each in tensors])
        vector = on_mesh(flat, first.device_mesh)
        # All ranks must send the same number of entries.
        self._sent = vector.new_zeros(max(self._lengths))
        self._sent[: len(vector)] = vector
        self._received = [torch.empty_like(self._sent) for _ in self._lengths]

    def exchange(self) -> list[Tensor]:
        """Send and receive; give the whole tensors."""
        torch.distributed.all_gather(self._received, self._sent, group=self._group)
        parts = [
            _split(vector[:length].to(self._device), shapes)
            for vector, length, shapes in zip(
                self._received, self._lengths, self._shapes, strict=True
            )
        ]
        del self._received, self._sent
        by_tensor = zip(self._cuts, zip(*parts, strict=True), strict=True)
        return [torch.cat(of_ranks, dim=cut.dim) for cut, of_ranks in by_tensor]


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
