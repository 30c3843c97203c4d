"""Permutations of vectors that ranks share, in memory for a rank's share alone."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lightning_linf.functional.exchange import AllToAll, Exchange
from lightning_linf.functional.permutation import permuted
from lightning_linf.functional.strips import Layout, run


class ShardedPermutation:
    """Permute a vector that ranks share: entry i of the result is entry p(i) of the argument.

    Entries first go to where each rank has an equal stretch of the vector, are permuted between
    stretches, and go to where they belong: three messages to every rank. Memory: beside shards, 8
    bytes for each entry of a stretch, and 40 while they are computed.

    Args:
        images: Gives p(i) for neighbouring i: of the first, how many, whether for the inverse of p,
            and on which device. int64.
        num_params: Number of entries d.
        parts: What each rank sends: every entry once.
        layout: What each rank is to have in the end.
        rank: Of this process.
        device: Of the vectors.
    """

    def __init__(
        self, images: Callable[[int, int, bool, torch.device], Tensor], num_params: int,
        parts: Layout, layout: Layout, rank: int, device: torch.device,
    ) -> None:  # fmt: skip
        num_ranks = len(parts)
        borders = [num_params * each // num_ranks for each in range(num_ranks + 1)]
        stretches = [[run(*each)] if each[0] < each[1] else [] for each in pairwise(borders)]
        self._to_stretches = Exchange(parts, stretches, rank)
        self._from_stretches = Exchange(stretches, layout, rank)
        first, size = borders[rank], borders[rank + 1] - borders[rank]
        dtype = torch.int32 if size < 2**31 else torch.int64
        inner = torch.tensor(borders[1:-1], device=device, dtype=torch.int64)

        # What goes to a rank is sorted by its number in the result, on both sides.
        targets, order = images(first, size, True, device).sort()
        ends = torch.searchsorted(targets, inner).tolist()
        self._order = order.to(dtype)
        del targets, order
        sources = torch.bucketize(images(first, size, False, device), inner, right=True)
        num_received = torch.bincount(sources, minlength=num_ranks).tolist()
        places = sources.argsort(stable=True)
        self._origins = torch.empty_like(places, dtype=dtype)
        self._origins[places] = torch.arange(size, dtype=dtype, device=device)
        num_sent = [b - a for a, b in zip([0, *ends], [*ends, size], strict=True)]
        self._counts = num_sent, num_received

    def __call__(self, x: Tensor, all_to_all: AllToAll) -> Tensor:
        """Permute what this rank has, (n,). Called by all ranks together."""
        y = self._to_stretches(x, all_to_all)
        y = all_to_all(y.index_select(0, self._order), *self._counts)
        return self._from_stretches(y.index_select(0, self._origins), all_to_all)


def images_of_parts(
    sizes: Sequence[int], seeds: Sequence[int], first: int, count: int,
    inverse: bool, device: torch.device,
) -> Tensor:  # fmt: skip
    """Give images under permutations of consecutive parts of a vector, each with its own seed.

    Args:
        sizes: Of the parts.
        seeds: Of their permutations.
        first: The first number.
        count: How many.
        inverse: Give the images under the inverse.
        device: Of the result.
    """
    starts = list(accumulate(sizes, initial=0))
    images = torch.empty(count, dtype=torch.int64, device=device)
    place = max(0, bisect_right(starts, first) - 1)
    while place < len(sizes) and starts[place] < first + count:
        start, size = starts[place], sizes[place]
        low, high = max(first, start), min(first + count, start + size)
        if low < high:
            part = permuted(
                low - start,
                high - low,
                size=size,
                seed=seeds[place],
                inverse=inverse,
                device=device,
            )
            images[low - first : high - first] = part.add_(start)
        place += 1
    return images
