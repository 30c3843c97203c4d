"""Into how many parts to split batches, as far as their memory is known before a probe."""

import logging
from collections.abc import Callable

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.functional.offload import Offload
from lightning_linf.probe import Landscape, ProbeMemory
from lightning_linf.probe.available_memory import available_memory
from lightning_linf.probe.memory_by_phase import shown_bytes

_log = logging.getLogger(__name__)


class MemoryPlan:
    """Find the fewest parts whose probe fits into what is free, and say what it takes.

    Args:
        caller: Name of the monitor.
        make: From a number of parts, and where vectors wait, to a landscape that is not entered.
        memory_of: From a landscape that is entered to what a probe takes there.
        ranks: That probe together: the plan is one for all.
        warn_once: Takes a kind of warning and its text.
    """

    def __init__(
        self,
        caller: str,
        make: Callable[[int, Offload | None], Landscape],
        memory_of: Callable[[Landscape], ProbeMemory],
        ranks: Ranks,
        warn_once: Callable[[str, str], object],
    ) -> None:
        self._caller, self._make, self._memory_of = caller, make, memory_of
        self._ranks, self._warn_once = ranks, warn_once

    def num_parts(self, offload: Offload | None, most: int) -> int:
        """Choose 1, 2, 4 or up to ``most`` parts; 1 if the loss cannot be followed beforehand."""
        try:
            return self._fewest(offload, most)
        except ProbeError as error:  # the probe itself will find out
            _log.debug(f"{self._caller}: does not know what a probe takes. {error}")
            return 1

    def _fewest(self, offload: Offload | None, most: int) -> int:
        num_parts, whole = 1, self._memory(1, offload)
        rank_zero_info(
            f"{self._caller}: a probe takes {shown_bytes(whole.peak)} "
            f"({self._free()}): {whole.parts}."
        )
        memory = whole
        while not self._fits(memory):
            if num_parts >= most:
                self._warn_once("memory", self._why_not(memory, num_parts, offload))
                return num_parts
            num_parts *= 2
            memory = self._memory(num_parts, offload)
        if num_parts > 1:
            self._warn_once(
                f"parts {num_parts}",
                f"a probe of whole batches would take {shown_bytes(whole.peak)} ({self._free()}), "
                f"so it takes its batches in {num_parts} parts: {shown_bytes(memory.peak)}. The "
                "numbers are the same.",
            )
        return num_parts

    def _memory(self, num_parts: int, offload: Offload | None) -> ProbeMemory:
        landscape = self._ranks.together(lambda: self._make(num_parts, offload))
        with landscape:
            return self._memory_of(landscape)

    def _fits(self, memory: ProbeMemory) -> bool:
        """Whether it fits on every rank."""

        def lacks() -> tuple[float, float]:
            free = available_memory(self._ranks.device)
            return float(free is not None and memory.peak > free), 0.0

        return self._ranks.add(lacks)[0] == 0

    def _why_not(self, memory: ProbeMemory, num_parts: int, offload: Offload | None) -> str:
        parts = f", with its batches in {num_parts} parts" if num_parts > 1 else ""
        text = (
            f"a probe takes {shown_bytes(memory.peak)}{parts} ({self._free()}). It is tried even "
            "so. "
        )
        if offload is None:
            offloaded = self._memory(num_parts, "cpu")
            text += f'offload="cpu" would lower that to {shown_bytes(offloaded.peak)}. '
        return (
            text + "Of it, the graph of the gradient grows with the samples: let probe_loss(batch) "
            "take fewer, and probe_weight(batch) count them."
        )

    def _free(self) -> str:
        free = available_memory(self._ranks.device)
        return f"{'an unknown amount' if free is None else shown_bytes(free)} is free"
