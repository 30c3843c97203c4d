"""The values of tensors, kept and put back: many of them in one call."""

from collections.abc import Iterable

import torch
from torch import Tensor


class SavedTensors:
    """The values that tensors have when they are added, to be put back as often as one likes."""

    def __init__(self) -> None:
        self._plain: list[_SavedTensor] = []  # put back in one call: there may be 100,000 of them
        self._others: list[_SavedTensor] = []  # put back one by one

    def add(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the values of tensors; the names are for errors.

        Tensors without memory are left out: views of what torch's older FSDP has freed.
        """
        with torch.inference_mode(False):
            for name, tensor in named:
                if _is_freed(tensor):
                    continue
                saved = _SavedTensor(name, tensor)
                (self._plain if saved.is_plain else self._others).append(saved)

    def restore(self) -> list[str]:
        """Put all values back into the memory they were in; return what went wrong, by tensor."""
        each = self._others
        try:
            with torch.inference_mode(False):
                for saved in self._plain:
                    saved.replace()
                if self._plain:
                    torch._foreach_copy_(
                        [saved.data for saved in self._plain], [saved.copy for saved in self._plain]
                    )
        except Exception:
            each = [*self._plain, *self._others]
        failures = []
        for saved in each:
            try:
                saved.restore()
            except Exception as error:
                failures.append(f"{saved.name} ({type(error).__name__}: {error})")
        return failures


def _is_freed(tensor: Tensor) -> bool:
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.numel() == 0:
        return False
    return tensor.untyped_storage().nbytes() == 0


class _SavedTensor:
    """A tensor, its memory and a copy of its values."""

    __slots__ = ("copy", "data", "is_plain", "name", "pointer", "tensor", "whole")

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor = name, tensor
        is_inference = tensor.is_inference()
        is_strided = tensor.layout == torch.strided
        self.is_plain = type(tensor) is Tensor and is_strided and not is_inference
        if not is_inference:
            self._capture(is_strided)
        else:
            with torch.inference_mode():
                self._capture(is_strided)

    def _capture(self, is_strided: bool) -> None:
        # .data: a graph that the training holds on this tensor must not see a new version.
        self.whole = data = self.tensor.data
        self.pointer = data.data_ptr() if is_strided else None
        if is_strided and 0 in data.stride():  # entries of an expanded tensor share their memory
            for dim, stride in enumerate(data.stride()):
                data = data.narrow(dim, 0, min(1, data.shape[dim])) if stride == 0 else data
        self.data, self.copy = data, data.clone()

    def replace(self) -> None:
        """Give the tensor its memory and its shape back, if it has others by now."""
        tensor, whole = self.tensor, self.whole
        if self.pointer is not None and not (
            tensor.data_ptr() == self.pointer
            and tensor.shape == whole.shape
            and tensor.stride() == whole.stride()
        ):
            tensor.data = whole

    def restore(self) -> None:
        with torch.inference_mode(self.tensor.is_inference()):
            self.replace()
            self.data.copy_(self.copy)
