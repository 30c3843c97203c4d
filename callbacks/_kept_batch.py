"""Training batches that are kept for a probe."""

from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_linf.probe import ProbeError


class KeptBatch:
    """A batch as it was before ``training_step``, which may take entries out of its containers."""

    def __init__(self, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx
        self._tensors: list[Tensor] = []
        self._batch = apply_to_collection(batch, Tensor, self._keep)
        self._versions = self._present_versions()

    def batch(self) -> Any:
        """Give it, if its tensors are unchanged."""
        if self._present_versions() != self._versions:
            raise ProbeError(
                "probe: expected a batch as training_step got it, but its tensors were changed in "
                "place. Work on copies in training_step."
            )
        return self._batch

    def _keep(self, tensor: Tensor) -> Tensor:
        self._tensors.append(tensor)
        return tensor

    def _present_versions(self) -> list[int]:
        return [t._version for t in self._tensors if not t.is_inference()]
