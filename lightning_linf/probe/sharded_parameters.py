"""The parameters of a module of which ranks hold parts, as one vector of stretches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_linf.distributed.all_to_all import all_to_all_over
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.distributed.shards import is_sharded
from lightning_linf.distributed.stretches import StretchExchange, max_over_ranks
from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.vector_shards import VectorShards, sharing_vectors
from lightning_linf.probe.gathered_at_use import GatheredAtUse
from lightning_linf.probe.parameters import ParameterVector, stretch_of


class ShardedParameters:
    """This rank's stretch of every parameter, and what stands for whole ones in the module.

    Stretches are cut once, one parameter at a time, whatever the placements of DTensors are. Frozen
    parameters that are sharded are kept so, too. All ranks must make this together.

    Args:
        vector: Of the parameters that are differentiated. From now on its vectors are shards.
        places: Container, key and tensor of every place that holds a parameter or a buffer.
        ranks: Those that share the module.
        device: From which they send.
    """

    def __init__(
        self,
        vector: ParameterVector,
        places: Iterable[tuple[Any, Any, Tensor]],
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        chosen = {id(p) for p in vector.originals}
        frozen = {
            id(tensor): tensor
            for _, _, tensor in places
            if isinstance(tensor, nn.Parameter) and is_sharded(tensor) and id(tensor) not in chosen
        }
        self._originals = [*vector.originals, *frozen.values()]
        exchange = StretchExchange(
            ranks.rank, torch.distributed.get_world_size(), device, together=ranks.exchange
        )

        def sum_over_ranks(values: Tensor) -> Tensor:
            ranks.agree(None)  # in the midst of an estimate, where one may have failed
            return ranks.sum(values)

        def largest_over_ranks(values: Tensor) -> Tensor:
            return ranks.exchange(partial(max_over_ranks, values, device))

        all_to_all = all_to_all_over(None, device.type)

        def exchange_parts(values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
            return ranks.exchange(partial(all_to_all, values, sent, received))

        division = partial(
            VectorShards,
            rank=exchange.rank,
            num_ranks=exchange.num_ranks,
            sum_over_ranks=sum_over_ranks,
            max_over_ranks=largest_over_ranks,
        )
        self.shards = division(vector.sizes)
        self.holdings = Holdings.of_shards(self.shards, exchange_parts)
        self.wholes = GatheredAtUse([p.shape for p in self._originals], exchange)
        self._stretches = []
        cuts = division([p.numel() for p in self._originals]).stretches()
        for p, cut in zip(self._originals, cuts, strict=True):
            torch.empty(2 * p.numel(), dtype=p.dtype, device=p.device)  # if there is no memory
            self._stretches.append(ranks.exchange(partial(stretch_of, p, cut)).clone())
        vector.shards = self.shards

    def nbytes(self, vector: ParameterVector) -> int:
        """What the stretches take of which there are copies in another dtype beside them."""
        return sum(s.nbytes for s in self._stretches if vector.dtype_of(s) != s.dtype)

    @property
    def gathered(self) -> set[int]:
        """Identities of the parameters that are not gathered before they are used."""
        return {id(p) for p in self._originals}

    def substitute(
        self,
        vector: ParameterVector,
        places: Iterable[tuple[Any, Any, Tensor]],
        offset: Tensor | None,
        whole: Mapping[int, Tensor],
    ) -> list[Tensor]:
        """Do what :meth:`ParameterVector.substitute` does; the leaves are stretches.

        Args:
            vector: Perhaps in a wider dtype.
            places: As there.
            offset: A shard, or None.
            whole: As there, for sharded buffers.
        """
        # Not copied if they are the same: what is gathered is a copy.
        copies = [vector.copy(stretch, always=False) for stretch in self._stretches]
        leaves = copies[: len(vector.originals)]
        if offset is not None:
            parts = vector.unflatten(offset)
            leaves = [leaf.add(part) for leaf, part in zip(leaves, parts, strict=True)]
            copies[: len(leaves)] = leaves
        for leaf in leaves:
            leaf.requires_grad_()
        stand_ins: dict[int, Tensor] = {
            id(p): self.wholes.stand_in(stretch, number)
            for number, (p, stretch) in enumerate(zip(self._originals, copies, strict=True))
        }
        vector.put_in_place(places, stand_ins, whole)
        return leaves

    @contextmanager
    def in_halves(self, half: int, second: Sequence[Tensor]) -> Iterator[None]:
        """Keep products of two halves of the batches apart in a backward pass inside.

        It gives those of the half 0; those of the half 1 are added to ``second``.

        Args:
            half: In which this rank's batch is.
            second: One stretch for each parameter.
        """

        def collect(whole: Tensor, number: int) -> Tensor:
            both = whole.new_zeros(2, whole.numel())
            both[half] = whole.reshape(-1)
            ours, others = self.wholes.stretches(both).unbind()
            second[number].add_(others)
            return ours

        with self._collected_by(collect):
            yield

    @contextmanager
    def curvature_along(self, vector: Sequence[Tensor]) -> Iterator[Tensor]:
        """Add up v^T H v of this rank's batch alone in a backward pass inside. Shape: ().

        Args:
            vector: What is multiplied, as one stretch for each parameter.
        """
        total = vector[0].new_zeros((), dtype=wide_dtype(vector[0]))

        def collect(whole: Tensor, number: int) -> Tensor:
            along = self.wholes.whole(vector[number], number)
            with sharing_vectors(None):  # both are whole
                total.add_(sum_in_pieces(torch.mul, along.reshape(-1), whole.reshape(-1)))
            return self.wholes.stretch(whole, number)

        with self._collected_by(collect):
            yield total

    @contextmanager
    def adding_to(self, sums: Sequence[Tensor]) -> Iterator[None]:
        """Let a pass over a graph inside add what it takes early to one stretch per parameter."""
        self.wholes.sums = sums
        try:
            yield
        finally:
            self.wholes.sums = None

    @contextmanager
    def _collected_by(self, collect: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
        self.wholes.collect = collect
        try:
            yield
        finally:
            self.wholes.collect = None
