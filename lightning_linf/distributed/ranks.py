"""Sums over ranks that probe together, and failures that all of them learn of."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor

from lightning_linf.errors import ProbeError, ProbeMemoryError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Ranks:
    """The ranks of a probe: what one of them fails at, all fail at, instead of waiting forever.

    If one rank raised an exception and left while the others wait in a collective operation, they
    would hang. So every pass over batches, and entering and leaving a landscape, end in one call of
    :meth:`agree` on every rank, also on one whose work has failed.

    Args:
        reduce: Sums a tensor over ranks and returns it. None: there is one rank.
        device: Device of the tensors to sum.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None, device: torch.device) -> None:
        self.is_alone = reduce is None
        self.all_know = False
        """Whether some rank has failed and all ranks have learnt so in :meth:`agree`."""
        self.device = device
        self._reduce = reduce

    @property
    def rank(self) -> int:
        """Number of this rank; 0 if there is one only."""
        return torch.distributed.get_rank() if self._reduce is not None and _has_ranks() else 0

    def start(self) -> None:
        """Forget failures of earlier probes."""
        self.all_know = False

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over ranks, perhaps in place."""
        return values if self._reduce is None else self._reduce(values)

    def together(self, work: Callable[[], _T]) -> _T:
        """Call ``work``, which may fail on one rank alone; if it does, raise on all ranks.

        Raises:
            ProbeError: As :meth:`agree`.
            Exception: What ``work`` raises on this rank.
        """
        results = []

        def keep_result() -> tuple[float, float]:
            results.append(work())
            return 0.0, 0.0

        self.add(keep_result)
        return results[0]

    def add(self, work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """Call ``work`` as :meth:`together` does, and add up over ranks both numbers it returns."""
        failure: Exception | None = None
        numbers = 0.0, 0.0
        self.all_know = False
        try:
            numbers = work()
        except Exception as error:
            if self.all_know:  # from an :meth:`agree` within the work
                raise
            failure = error
        try:
            return self.agree(failure, *numbers)
        finally:
            del failure  # its traceback refers to this frame, which would keep both alive

    def agree(
        self,
        failure: BaseException | None,
        first: float = 0.0,
        second: float = 0.0,
        *,
        silent: bool = False,
    ) -> tuple[float, float]:
        """Add up two numbers over ranks; raise on all of them if one has failed.

        Args:
            failure: What this rank has failed with, or None.
            first: A number of this rank.
            second: Another one.
            silent: Raise nothing on a rank that failed itself; its caller will.

        Returns:
            The sums over ranks of the first and of the second numbers.

        Raises:
            ProbeMemoryError: If a rank has run out of memory.
            ProbeError: If another rank failed; this rank's own ``failure`` is raised as it is.
        """
        failed = float(failure is not None)
        starved = float(failure is not None and is_out_of_memory(failure))
        first_failed = failed if self.rank == 0 else 0.0
        if self._reduce is not None:
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            numbers = [first, second, failed, starved, first_failed]
            totals = torch.tensor(numbers, dtype=dtype, device=self.device)
            first, second, failed, starved, first_failed = self._reduce(totals).tolist()
        self.all_know = failed > 0
        if failure is not None and not first_failed:  # rank 0, which reports, does not know of it
            _log.warning(f"probe: failed on rank {self.rank}. {type(failure).__name__}: {failure}")
        if failure is not None and silent:
            return first, second
        if starved:
            where = "another rank" if failure is None else f"this rank ({failure})"
            raise ProbeMemoryError(
                f"probe: out of memory on {where}. Probe fewer samples: define probe_loss(batch) "
                "that takes a part of the batch, and probe_weight(batch) that counts it."
            ) from failure
        if failure is not None:
            raise failure
        if failed:
            raise ProbeError("probe: another rank failed, and logs the cause.")
        return first, second


def _has_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device, or such an error was agreed upon."""
    kinds = (MemoryError, torch.OutOfMemoryError, ProbeMemoryError)
    # Lightning looks for words in arguments, and takes them for text.
    is_text = all(isinstance(argument, str) for argument in error.args)
    return isinstance(error, kinds) or (is_text and is_oom_error(error))
