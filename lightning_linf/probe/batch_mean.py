"""Means over the batches of all ranks, weighted by their numbers of samples."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.probe.functional_module import FunctionalModule
from lightning_linf.probe.loss_function import batch_weight


class Mean(NamedTuple):
    """What a pass over the batches gives."""

    rows: Tensor  # (r, d)
    loss: float


class BatchMean:
    """Add up over batches, and then over ranks, each batch with its weight.

    All ranks must make the same calls, and a failure on one is a failure on all. There are also two
    halves: the batches 0, 2, ... of rank 0 and 1, 3, ... of rank 1 are in the first, and so on;
    ranks that have the same batches count as one.

    Where vectors are shards all ranks pass over batches together, as often as the one with most
    of them; others then take their last batch with a weight of 0.
    """

    def __init__(self, function: FunctionalModule, ranks: Ranks) -> None:
        self._function = function
        self._ranks = ranks
        self.total_weight = 0.0  # of all batches of all ranks, once a mean was taken

    def of(
        self,
        add: Callable[[int, Tensor, float], float],
        num_rows: int,
        place: Callable[[int], slice] = lambda index: slice(None),
    ) -> Mean:
        """Take the mean over batches of rows (r, d) and of the loss.

        Args:
            add: Called with the number of each batch of this rank, with rows to which it adds those
                of the batch, and with the factor to multiply them by. Returns the loss.
            num_rows: Of the result.
            place: From the number of a batch to the rows of the result that it is added to.
        """
        sums = self._function.parameters.like

        def add_batches() -> tuple[float, float]:
            nonlocal sums
            sums = self._function.parameters.zeros(num_rows)
            weight = loss = 0.0
            for index, share in self._passes():
                loss += share * add(index, sums[place(index)], share)
                weight += share
            return weight, loss

        weight, loss = self._ranks.add(add_batches)
        self.total_weight = weight
        if self._function.sharded is None:  # otherwise they are added up where they are made
            sums = self._ranks.sum(sums)
        return Mean(sums.div_(weight), loss / weight)

    def _passes(self) -> Iterator[tuple[int, float]]:
        """Give the number and the weight of the batch of each pass."""
        count = len(self._function.batches)
        for index in range(count):
            yield index, self.weight(index)
        if self._function.sharded is not None:
            for _ in range(count, self._function.num_passes):
                yield count - 1, 0.0

    def weight(self, index: int) -> float:
        """Weight of a batch of this rank; one that is not positive is refused."""
        if self._is_of_one:
            return 1.0  # whatever it is; that of a lone batch need not be known
        weight = batch_weight(self._function.module, self._function.batches[index])
        if not weight > 0:
            raise ProbeError(
                f"probe: expected batches of positive weight, got {weight} for batch {index}."
            )
        return weight

    @property
    def num_samples(self) -> float | None:
        """Samples in the batches of all ranks, as their weights count them.

        None if a lone batch does not tell, or of several no mean was taken yet.
        """
        if not self._is_of_one:
            return self.total_weight or None
        try:
            return batch_weight(self._function.module, self._function.batches[0])
        except ProbeError:
            return None

    @property
    def _is_of_one(self) -> bool:
        return len(self._function.batches) == 1 and self._ranks.is_alone

    def half(self, index: int) -> int:
        """Which half a batch of this rank is in, 0 or 1."""
        ranks = self._function.data_ranks
        return ((self._ranks.rank if ranks is None else ranks.number) + index) % 2

    def first_half(self) -> float | None:
        """Share of the first half in the weight of all batches; None if there is one half alone."""
        indices = range(len(self._function.batches))
        if self._is_of_one:
            return None

        def weigh() -> tuple[float, float]:
            first = sum(self.weight(i) for i in indices if self.half(i) == 0)
            return first, sum(self.weight(i) for i in indices if self.half(i) == 1)

        first, second = self._ranks.add(weigh)
        return first / (first + second) if first > 0 and second > 0 else None
