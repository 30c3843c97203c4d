"""The blocks of the part of a sharded tensor that this rank holds."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_linf.distributed.gathering import part_of
from lightning_linf.distributed.shards import local
from lightning_linf.partition.layouts import IndexLayout, Layout

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardLayout(NamedTuple):
    """How this rank's part falls into local blocks, each a part of one of the tensor's blocks."""

    layout: Layout | IndexLayout  # the local blocks
    labels: Tensor | None  # (local blocks,): number in the whole tensor; None: they are the same


def shard_layout(layout: Layout | IndexLayout, p: "DTensor") -> ShardLayout:
    """Lay out this rank's part of a parameter, given the layout of the whole."""
    if layout.is_identity:
        return ShardLayout(Layout((local(p).numel(),), (0,)), None)
    if isinstance(layout, IndexLayout):
        index = layout.index
    else:
        separate = _separate(layout, p)
        if separate is not None:
            return separate
        index = layout.expand(torch.arange(layout.num_blocks, dtype=torch.int32))
    part = part_of(index.view(p.shape).to(p.device), p)
    return ShardLayout(IndexLayout(part.flatten(), layout.num_blocks), None)


def _separate(layout: Layout, p: "DTensor") -> ShardLayout | None:
    """Lay out the part as a regular view of its shape, if that is possible; else give None.

    It is if one dimension of the tensor is sharded, and the view of the layout splits or keeps that
    dimension but does not merge it with others. For example, of a weight (6, 4) with its rows as
    blocks, a rank that holds rows 2 and 3 has a part (2, 4) with local blocks 0 and 1, whose labels
    are 2 and 3. In general the number of a block has three digits, from the dimensions before the
    sharded one, from that one, and from those after it; only the middle digit depends on the rank.
    """
    dims = {
        placement.dim  # type: ignore[attr-defined]  # of Shard, for which there are several classes
        for placement in p.placements
        if not placement.is_replicate()
    }
    if len(dims) != 1:
        return None
    (dim,) = dims
    view, keep = layout.view, layout.keep
    start = _reach(view, 0, math.prod(p.shape[:dim]))
    stop = None if start is None else _reach(view, start, p.shape[dim])
    if start is None or stop is None:
        return None
    indices = _indices(p, dim)
    inner = (*view[:start], len(indices), *view[stop:])
    before = [d for d in keep if d < start]
    here = [d - start for d in keep if start <= d < stop]
    after = [d + start + 1 - stop for d in keep if d >= stop]
    if not here:
        return ShardLayout(Layout(inner, (*before, *after)), None)
    middle = Layout(view[start:stop], tuple(here))
    label = middle.expand(torch.arange(middle.num_blocks, device=p.device))[indices]
    num_before, num_after = (math.prod(inner[d] for d in kept) for kept in (before, after))
    firsts = torch.arange(num_before, device=p.device).view(-1, 1, 1) * middle.num_blocks
    lasts = torch.arange(num_after, device=p.device)
    labels = ((firsts + label.view(-1, 1)) * num_after + lasts).flatten()
    return ShardLayout(Layout(inner, (*before, start, *after)), labels)


def _reach(view: tuple[int, ...], start: int, size: int) -> int | None:
    """Find the end at which the sizes from ``start`` on have the product ``size``, if any."""
    ends = range(start, len(view) + 1)
    return next((end for end in ends if math.prod(view[start:end]) == size), None)


def _indices(p: "DTensor", dim: int) -> Tensor:
    """Give the indices along one dimension that this rank holds: (indices,)."""
    shape = [1] * p.ndim
    shape[dim] = -1
    indices = torch.arange(p.shape[dim], device=p.device).view(shape).expand(p.shape)
    part = part_of(indices, p)
    for other in range(p.ndim):
        if other != dim:
            part = part.narrow(other, 0, 1)  # no other is sharded, so none is empty
    return part.flatten()
