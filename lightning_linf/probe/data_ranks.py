"""Which rank has which batches, where ranks share the parameters of a module."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from lightning_linf.distributed.ranks import Ranks


@dataclass(frozen=True)
class DataRanks:
    """The numbers of batches of all ranks, and which ranks have the same ones.

    Args:
        rank: Of this process.
        counts: How many batches each rank has.
        keys: For each rank a number, the same for ranks that have the same batches.
    """

    rank: int
    counts: tuple[int, ...]
    keys: tuple[int, ...]

    @classmethod
    def agree(cls, ranks: Ranks, num_batches: int, key: int) -> Self:
        """Tell all ranks the count and the key of each; all must call this."""
        both = torch.zeros(2, torch.distributed.get_world_size(), device=ranks.device)
        both[:, ranks.rank] = torch.tensor([num_batches, key], device=ranks.device)
        counts, keys = ranks.sum(both).round().int().tolist()
        return cls(ranks.rank, tuple(counts), tuple(keys))

    @property
    def number(self) -> int:
        """Of this rank's batches among the different ones."""
        return sorted(set(self.keys)).index(self.keys[self.rank])

    @property
    def num_passes(self) -> int:
        """How often all ranks must run the module to run it on every batch."""
        return max(self.counts)

    @property
    def is_first(self) -> bool:
        """Whether no rank before this one has the same batches."""
        return self.keys.index(self.keys[self.rank]) == self.rank

    def owners(self, index: int) -> Iterator[int]:
        """Ranks that have a batch of this number, one of those that have the same."""
        for rank, (count, key) in enumerate(zip(self.counts, self.keys, strict=True)):
            if count > index and self.keys.index(key) == rank:
                yield rank
