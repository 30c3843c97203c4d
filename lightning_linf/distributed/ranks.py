"""Sums over ranks that probe together, and failures that all of them learn of."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Optional, TypeVar

import torch
from torch import Tensor

from lightning_linf.distributed.place import HERE
from lightning_linf.distributed.roll_call import REMEDY, absent, have_met
from lightning_linf.errors import ProbeError, ProbeMemoryError, RankLostError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_TOGETHER: ContextVar[Optional["Ranks"]] = ContextVar("working_together", default=None)


def working_together() -> Optional["Ranks"]:
    """Give the ranks in whose :meth:`Ranks.together` this is called, on all of them; else None."""
    return _TOGETHER.get()


class Ranks:
    """The ranks of a probe: what one of them fails at, all fail at, instead of waiting forever.

    If one rank raised an exception and left while the others wait in a collective operation, they
    would hang. So every pass over batches, and entering and leaving a landscape, end in one call of
    :meth:`agree` on every rank, also on one whose work has failed.

    If a collective itself fails, as where another process was killed or comes too late, nothing can
    be agreed upon any more, and a :class:`~lightning_linf.errors.RankLostError` says who is missing
    (:mod:`~lightning_linf.distributed.roll_call`).

    Args:
        reduce: Sums a tensor over ranks and returns it. None: there is one rank.
        device: Device of the tensors to sum.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None, device: torch.device) -> None:
        self.is_alone = reduce is None
        self.all_know = False
        """Whether all ranks know that one has failed, or nothing can be told them any more."""
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
        """Add up a tensor over ranks, perhaps in place.

        Raises:
            RankLostError: If that fails.
        """
        if self._reduce is None:
            return values
        return self._send(partial(self._reduce, values))

    def exchange(self, send: Callable[[], _T]) -> _T:
        """Call ``send``, a collective operation, once all ranks have told that they come to it.

        Within :meth:`together`, where one of them may have failed on the way. What is sent, and the
        memory for what comes, should be there before, since ``send`` must not fail on one rank.

        Raises:
            ProbeError: As :meth:`agree`.
            RankLostError: If ``send`` fails.
        """
        self.agree(None)
        return self._send(send)

    def _send(self, send: Callable[[], _T]) -> _T:
        HERE.arrive()
        try:
            result = send()
        except (RuntimeError, MemoryError) as error:
            self.all_know = True
            raise _lost(error) from error
        HERE.move()
        return result

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
        token = _TOGETHER.set(self)
        try:
            numbers = work()
        except RankLostError:
            self.all_know = True
            raise
        except Exception as error:
            if self.all_know:  # work that ranks did together inside of this has told them
                raise
            failure = error
        finally:
            _TOGETHER.reset(token)
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
            RankLostError: If another rank is missing.
        """
        if isinstance(failure, RankLostError):  # the other ranks are not there to be told
            self.all_know = True
            if silent:
                return first, second
            raise failure
        failed = float(failure is not None)
        starved = float(failure is not None and is_out_of_memory(failure))
        first_failed = failed if self.rank == 0 else 0.0
        if self._reduce is not None:
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            numbers = [first, second, failed, starved, first_failed]
            totals = torch.tensor(numbers, dtype=dtype, device=self.device)
            first, second, failed, starved, first_failed = self.sum(totals).tolist()
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


def _lost(error: Exception) -> RankLostError:
    """Say in which phase a collective has failed, and which ranks are missing."""
    HERE.gave_up = True  # which the heartbeat tells while the others are looked for
    if is_out_of_memory(error):
        missing = "This rank ran out of memory in it, and the others wait there."
    else:
        missing = (absent() if have_met() else "") or "No rank is missing."
    return RankLostError(
        f"probe: a collective failed in: {HERE}. {missing} {REMEDY} {type(error).__name__}: {error}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device, or such an error was agreed upon."""
    # Not at the top: optimizers import this module, and Lightning takes seconds.
    from lightning.pytorch.utilities.memory import is_oom_error

    if isinstance(error, RankLostError):  # of any cause: less memory would not bring it back
        return False
    kinds = (MemoryError, torch.OutOfMemoryError, ProbeMemoryError)
    # Lightning looks for words in arguments, and takes them for text.
    is_text = all(isinstance(argument, str) for argument in error.args)
    return isinstance(error, kinds) or (is_text and is_oom_error(error))
