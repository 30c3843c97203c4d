"""The optimizer step after which a probe runs: where it started, and whether it was made."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_linf.callbacks._trainer import loss_scale
from lightning_linf.distributed.gathering import gather
from lightning_linf.distributed.shards import local
from lightning_linf.functional.offload import Offload, offloading, set_aside
from lightning_linf.probe import Landscape


class LastStep:
    """The parameters and the scale of the loss as they were before an optimizer step.

    Args:
        offload: Where the copies of the parameters wait, as in
            :class:`~lightning_linf.probe.Landscape`.
    """

    def __init__(self, offload: Offload | None) -> None:
        self._offload: Offload | None = offload
        self._before: dict[int, Tensor] = {}  # by the identity of the parameters
        self._scale_before: float | None = None

    def begin(self, trainer: Trainer, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the parameters, before the first of several optimizers steps."""
        if not self._before:
            with offloading(self._offload):
                self._before = {id(p): _copy(p.detach()) for p in parameters}
            self._scale_before = loss_scale(trainer)

    def forget(self) -> None:
        """Free the copies."""
        self._before = {}

    def was_skipped(self, trainer: Trainer) -> bool:
        """Whether the gradient scaler has left out the step because of overflowing gradients."""
        scale = loss_scale(trainer)
        return scale is not None and self._scale_before is not None and scale < self._scale_before

    def has_changed(self, parameter: nn.Parameter) -> bool:
        """Whether the step has changed this rank's part of a parameter, or added it."""
        before = self._before.get(id(parameter))
        if before is None:
            return True
        now = local(parameter.detach())
        return not torch.equal(now, local(before).to(now.device))

    def ends(self, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
        """Give this rank's parts of parameters, and the copies of them from before the step.

        Parameters that the step itself has added to the optimizer are left out.
        """
        known = [p for p in parameters if id(p) in self._before]
        copies = [local(self._before[id(p)]) for p in known]
        return [local(p.detach()) for p in known], copies

    def change(self, landscape: Landscape) -> Tensor | None:
        """What the step has added to the parameters of a landscape, which is entered. Shape: (d,).

        A shard where vectors are shards. None if the step itself has added some of them to the
        optimizer.
        """
        vector = landscape.parameters
        if not all(id(p) in self._before for p in vector.originals):
            return None
        moves = landscape.ranks.together(
            lambda: [
                p.detach().to(vector.dtype) - self._before[id(p)].to(p.device, vector.dtype)
                for p in vector.originals
            ]
        )
        return vector.flatten(gather(moves) if vector.shards is None else moves)


def _copy(values: Tensor) -> Tensor:
    if type(values) is not Tensor:  # sharded
        return values.clone()
    kept = set_aside(values)
    return values.clone() if kept is values else kept
