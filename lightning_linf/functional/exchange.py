"""Bring a vector that ranks hold in one way into another, by one message to every rank."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.strips import Layout, Strip, common, total

AllToAll = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""Sends a part of a tensor (n,) to every rank: what to send, how much to each rank, and how much
comes from each. Returns what has come, joined in the order of ranks."""


class _Part(NamedTuple):
    """What goes to a rank, or comes from it, and the strip of this rank's that it lies in."""

    rank: int
    strip: Strip
    outer: Strip
    offset: int  # of the outer strip in this rank's vector


class Exchange:
    """From one layout of a vector to another.

    Args:
        source: What each rank holds before. No entry belongs to two ranks.
        target: What each rank holds afterwards. Entries may belong to several ranks.
        rank: Of this process.
    """

    def __init__(self, source: Layout, target: Layout, rank: int) -> None:
        self.is_trivial = [*map(list, source)] == [*map(list, target)]
        self.num_entries = total(target[rank])
        self._sends, self._receives = [], []
        if not self.is_trivial:
            self._sends = list(_parts(source[rank], target, are_sources=True))
            self._receives = list(_parts(target[rank], source, are_sources=False))
        num_ranks = len(source)
        self.counts = _counts(self._sends, num_ranks), _counts(self._receives, num_ranks)
        """How many entries go to each rank, this one among them, and how many come from each."""

    def __call__(self, vector: Tensor, all_to_all: AllToAll) -> Tensor:
        """Give what this rank holds afterwards; all ranks call together. Perhaps ``vector``."""
        if self.is_trivial:
            return vector
        return self.unpack(all_to_all(self.pack(vector), *self.counts))

    # Those who want to free the vector before anything is sent call these instead.

    def pack(self, vector: Tensor) -> Tensor:
        """Copy what this rank holds in the order in which it is sent. A new tensor."""
        packed = vector.new_empty(sum(self.counts[0]))
        _copy(_views(packed, vector, self._sends), into_packed=True)
        return packed

    def unpack(self, received: Tensor, out: Tensor | None = None) -> Tensor:
        """Put what has come where this rank holds it: (n,), new or in ``out``."""
        result = received.new_empty(self.num_entries) if out is None else out
        _copy(_views(received, result, self._receives), into_packed=False)
        return result


def _parts(ours: Sequence[Strip], theirs: Layout, *, are_sources: bool) -> Iterator[_Part]:
    """Find what our strips have in common with those of each rank, in the order of the message.

    Both sides sort a message by strips of the source, then of the target.
    """
    flat = [
        (rank, place, each) for rank, held in enumerate(theirs) for place, each in enumerate(held)
    ]
    starts, stops = (
        torch.tensor([getattr(each, end) for *_, each in flat], device="cpu", dtype=torch.int64)
        for end in ("start", "stop")
    )
    found, offset = [], 0
    for our_place, strip in enumerate(ours):
        near = ((starts < strip.stop) & (stops > strip.start)).nonzero().flatten().tolist()
        for index in near:
            rank, place, other = flat[index]
            pair = (strip, other) if are_sources else (other, strip)
            order = (rank, *((our_place, place) if are_sources else (place, our_place)))
            parts = [_Part(rank, each, strip, offset) for each in common(*pair)]
            if parts:
                found.append((order, parts))
        offset += strip.size
    for _, parts in sorted(found, key=lambda each: each[0]):
        yield from parts


def _counts(parts: Sequence[_Part], num_ranks: int) -> list[int]:
    counts = [0] * num_ranks
    for part in parts:
        counts[part.rank] += part.strip.size
    return counts


def _views(
    packed: Tensor, vector: Tensor, parts: Sequence[_Part]
) -> tuple[list[Tensor], list[Tensor]]:
    """View every part in a message and in the vector, in the same shapes."""
    in_packed, in_vector, first = [], [], packed.storage_offset()
    for _, strip, outer, offset in parts:
        shape = (strip.rows, strip.width)
        in_packed.append(packed.as_strided(shape, (strip.width, 1), first))
        in_vector.append(strip.view(vector, offset, outer))
        first += strip.size
    return in_packed, in_vector


def _copy(views: tuple[list[Tensor], list[Tensor]], *, into_packed: bool) -> None:
    in_packed, in_vector = views
    if in_packed:
        torch._foreach_copy_(*((in_packed, in_vector) if into_packed else (in_vector, in_packed)))
