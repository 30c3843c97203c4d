"""Whether every block of one partition lies inside a single block of another one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_linf.partition.layouts import IndexLayout, Layout

Layouts = Sequence[Layout | IndexLayout]  # of each parameter tensor

_COMPARED = 1 << 22  # entries whose blocks are compared at a time


def is_finer(ours: Layouts, theirs: Layouts, num_blocks: int) -> bool:
    """Compare all entries, of which ours fall into ``num_blocks`` blocks.

    Memory: of three whole numbers for each entry of the largest tensor.
    """
    outer = torch.full((num_blocks,), -1)  # the block of theirs around each of ours
    for our, their in zip(ours, theirs, strict=True):
        labels = their.expand(torch.arange(their.first, their.first + their.num_blocks))
        counts = our.counts(labels.device)
        mean = our.block_sum(labels) // counts.clamp(min=1)  # of labels: of equal ones, each
        if not torch.equal(our.expand(mean), labels):
            return False
        known = outer[our.first : our.first + our.num_blocks]
        if ((known >= 0) & (known != mean) & (counts > 0)).any():
            return False
        known[counts > 0] = mean[counts > 0]
    return True


def is_finer_on_ranks(
    ours: Layouts,
    theirs: Layouts,
    num_blocks: int,
    stretches: Sequence[range],
    max_over_ranks: Callable[[Tensor], Tensor],
    device: torch.device,
) -> bool:
    """Compare on every rank the entries ``stretches`` of each tensor; all ranks are told.

    Memory: of a few million whole numbers, and two for each block.
    """
    # For each block, the largest number of the blocks of theirs around it, and minus the least one:
    # equal numbers add up to 0.
    ends = torch.full((2, num_blocks), -torch.inf, dtype=torch.float64, device=device)
    for our, their, stretch in zip(ours, theirs, stretches, strict=True):
        for start in range(0, len(stretch), _COMPARED):
            entries = stretch[start : start + _COMPARED]
            inner = _numbers(our, entries, device)
            outer = _numbers(their, entries, device).to(ends.dtype)
            for end, numbers in zip(ends, (outer, -outer), strict=True):
                end.scatter_reduce_(0, inner, numbers, "amax")
    return bool((max_over_ranks(ends).sum(dim=0) <= 0).all())


def _numbers(layout: Layout | IndexLayout, entries: range, device: torch.device) -> Tensor:
    """Give the number of the block of each of some entries. Shape: (entries,)."""
    numbers = []
    for _, piece in layout.stretch(entries):
        of_piece = torch.arange(piece.first, piece.first + piece.num_blocks, device=device)
        numbers.append(piece.expand(of_piece))
    return torch.cat(numbers)
