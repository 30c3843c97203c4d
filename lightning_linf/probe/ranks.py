"""What ranks tell each other while they probe together."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_linf.probe.errors import ProbeError


class Ranks:
    """Sums over ranks in which a failure of one is a failure of all, instead of a hang.

    Every pass over batches, and entering and leaving a landscape, make one call of :meth:`agree`,
    so a rank that fails anywhere meets the others in it.

    Args:
        reduce: Sums a tensor over ranks and returns it. None: there is one rank.
        device: Of the tensors to sum.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None, device: torch.device) -> None:
        self.is_alone = reduce is None
        self.all_know = False
        """Whether a failure, on this or another rank, is known to all."""
        self._reduce = reduce
        self._device = device

    def start(self) -> None:
        """Forget failures of earlier visits."""
        self.all_know = False

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor over ranks, perhaps in place."""
        return values if self._reduce is None else self._reduce(values)

    def agree(
        self,
        failure: BaseException | None,
        weight: float = 1.0,
        loss: float = 0.0,
        *,
        silent: bool = False,
    ) -> tuple[float, float]:
        """Add up weights and weighted losses over ranks; raise on all if one failed.

        Raises:
            ProbeError: If another rank failed; this rank's own ``failure`` is raised as it is,
                unless ``silent``.
        """
        failed = float(failure is not None)
        if self._reduce is not None:
            dtype = torch.float32 if self._device.type == "mps" else torch.float64
            totals = torch.tensor([weight, loss, failed], dtype=dtype, device=self._device)
            weight, loss, failed = self._reduce(totals).tolist()
        self.all_know = failed > 0
        if failure is not None and not silent:
            raise failure
        if failed and failure is None:
            raise ProbeError("probe: another rank failed; the cause stands in its own output.")
        return weight, loss
