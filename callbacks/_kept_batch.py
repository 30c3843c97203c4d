"""Training batches that are kept for a probe."""

from typing import Any

from torch import Tensor

from lightning_linf.probe import ProbeError
from lightning_linf.probe.batch_copy import copy_batch


class KeptBatch:
    """A batch as it was before ``training_step``, which may change its containers and objects.

    These are copied. Tensors are not: their version counters tell whether they were changed.
    """

    def __init__(self, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx
        self._tensors: list[Tensor] = []
        self._failure: ProbeError | None = None
        try:
            self._batch = copy_batch(batch, self._keep)
        except ProbeError as error:  # of a batch that may never be measured
            self._failure = error.with_traceback(None)
        self._versions = self._present_versions()

    def batch(self) -> Any:
        """Give the batch.

        Raises:
            ProbeError: If it could not be copied, or its tensors were changed since.
        """
        if self._failure is not None:
            raise self._failure
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
