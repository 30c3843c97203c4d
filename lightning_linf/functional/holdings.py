"""What every rank holds of a vector, and how ranks send each other parts of it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from lightning_linf.functional.exchange import AllToAll, Exchange
from lightning_linf.functional.strips import Layout, Strip, run, share, total
from lightning_linf.functional.vector_shards import VectorShards


@dataclass(frozen=True, eq=False)
class Holdings:
    """What every rank holds of a vector (d,) that joins flattened tensors.

    A rank's shard of the vector is what it holds of the first tensor, of the second, and so on,
    joined: (n,), with another n on each rank. An entry may be held by several ranks: by all of
    them, say, if its tensor is not sharded.

    Args:
        sizes: Number of entries of each whole tensor.
        held: For each rank and tensor, the strips that the rank holds, numbered within the tensor.
        rank: Of this process.
        all_to_all: How ranks send. Not called where each holds everything.
    """

    sizes: Sequence[int]
    held: Sequence[Sequence[Sequence[Strip]]]
    rank: int
    all_to_all: AllToAll

    @classmethod
    def of_shards(cls, shards: VectorShards, all_to_all: AllToAll) -> "Holdings":
        """Describe vectors as landscapes divide them."""
        held = [
            [[run(each.start, each.stop)] if each else [] for each in shards.stretches(rank)]
            for rank in range(shards.num_ranks)
        ]
        return cls(shards.sizes, held, shards.rank, all_to_all)

    @property
    def num_params(self) -> int:
        """Number of entries d of the whole vector."""
        return sum(self.sizes)

    @property
    def local_sizes(self) -> list[int]:
        """Number of entries that this rank holds of each tensor."""
        return [total(strips) for strips in self.held[self.rank]]

    @property
    def num_local(self) -> int:
        """Number of entries n that this rank holds."""
        return sum(self.local_sizes)

    @property
    def are_whole(self) -> bool:
        """Whether every rank holds every entry, in order."""
        whole = [[run(0, size)] if size else [] for size in self.sizes]
        return all([*map(list, held)] == whole for held in self.held)

    def select(self, places: Sequence[int]) -> "Holdings":
        """Describe the vector of some of the tensors, in this order."""
        held = [[of_rank[place] for place in places] for of_rank in self.held]
        return Holdings([self.sizes[place] for place in places], held, self.rank, self.all_to_all)

    @cached_property
    def layout(self) -> Layout:
        """Give what each rank holds, numbered within the vector."""
        return self._numbered(self.held)

    @cached_property
    def parts(self) -> Layout:
        """Give what each rank is to send: every entry once, those held by several in equal parts.

        Shards of a tensor are held either by the same ranks or by others: they do not overlap.
        """
        parts: list[list[Sequence[Strip]]] = [[] for _ in self.held]
        for tensor in range(len(self.sizes)):
            holders: dict[tuple[Strip, ...], list[int]] = defaultdict(list)
            for rank, of_rank in enumerate(self.held):
                holders[tuple(of_rank[tensor])].append(rank)
            for strips, ranks in holders.items():
                for number, rank in enumerate(ranks):
                    parts[rank].append(share(strips, number, len(ranks)))
        return self._numbered(parts)

    def own_part(self, shard: Tensor) -> Tensor:
        """Give what this rank is to send of its shard; the shard itself, if nobody has copies."""
        return self._to_own_part(shard, _alone)

    def shard_of(self, vector: Tensor) -> Tensor:
        """Give this rank's shard (n,) of a vector (d,) that it has whole: a new tensor."""
        exchange = Exchange([[run(0, self.num_params)]], [self.layout[self.rank]], rank=0)
        return vector.clone() if exchange.is_trivial else exchange(vector, _alone)

    def gather(self, shard: Tensor) -> Tensor:
        """Give the whole vector (d,) to all ranks: a new tensor."""
        whole = [run(0, self.num_params)]
        exchange = Exchange(self.parts, [whole] * len(self.parts), self.rank)
        return exchange(self.own_part(shard), self.all_to_all)

    @cached_property
    def _to_own_part(self) -> Exchange:
        return Exchange([self.layout[self.rank]], [self.parts[self.rank]], rank=0)

    def _numbered(self, held: Sequence[Sequence[Sequence[Strip]]]) -> Layout:
        firsts = list(accumulate(self.sizes, initial=0))[:-1]
        return [
            [
                strip._replace(start=first + strip.start)
                for first, strips in zip(firsts, of_rank, strict=True)
                for strip in strips
            ]
            for of_rank in held
        ]


def _alone(tensor: Tensor, num_sent: Sequence[int], num_received: Sequence[int]) -> Tensor:
    """Exchange with nobody."""
    return tensor
