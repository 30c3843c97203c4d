"""Trainable parameters as one vector, and fresh copies in a module's tables."""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_linf.errors import ProbeError
from lightning_linf.functional.dtypes import working_dtype
from lightning_linf.partition.pieces import trainable_parameters


class ParameterVector:
    """The trainable parameters of a module, in its own order, as one vector of d numbers.

    A tied parameter counts once. Working dtype: float32, or wider if a parameter is.

    Args:
        module: Whose parameters.
        only: Of those that require grad, only these. Default: all.

    Raises:
        ProbeError: If none is trainable, or one is uninitialized, complex or on another device.
    """

    def __init__(self, module: nn.Module, only: Collection[nn.Parameter] | None = None) -> None:
        named = trainable_parameters(module, only)
        if not named:
            raise ProbeError(
                f"probe: expected trainable parameters in {type(module).__name__}, got none. "
                "Set requires_grad on those whose landscape you want."
            )
        self.device = next(iter(named.values())).device
        for name, p in named.items():
            if isinstance(p, UninitializedParameter):
                got, remedy = "still lazy", "Run the module once before probing it"
            elif not p.is_floating_point():
                got, remedy = f"{p.dtype}", "Freeze it, or hold its parts as real parameters"
            elif p.device != self.device:
                got, remedy = f"on {p.device}", "Models split over devices cannot be probed"
            else:
                continue
            raise ProbeError(
                "probe: expected initialized, real floating parameters, all trainable ones on "
                f"{self.device}, but {name} is {got}. {remedy}."
            )
        self.names = list(named)
        self.shapes = [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        self.num_params = sum(self.sizes)
        self.dtype = working_dtype(named.values())
        # Low-precision weights anywhere: probe all of the module in the working dtype.
        tensors = (*module.parameters(), *module.buffers())
        self.widen = any(t.is_floating_point() and t.dtype.itemsize < 4 for t in tensors)
        self.originals = list(named.values())

    def zeros(self, *leading: int) -> Tensor:
        """Make zero vectors, in the working dtype. Shape: (*leading, d)."""
        return torch.zeros(*leading, self.num_params, dtype=self.dtype, device=self.device)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the working dtype, on the device of the parameters."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def widened(self, dtype: torch.dtype) -> Self:
        """Give the same parameters, whose copies are in ``dtype``, like all of the module."""
        wide = copy.copy(self)
        wide.dtype, wide.widen = dtype, True
        return wide

    def substitute(
        self,
        places: Iterable[tuple[Any, Any, Tensor]],
        offset: Tensor | None = None,
        whole: Mapping[int, Tensor] | None = None,
    ) -> list[Tensor]:
        """Put copies of all parameters and buffers where a module holds them.

        Tied entries stay tied. :func:`~lightning_linf.probe.module_state.untouched` puts the
        originals back.

        Args:
            places: Container, key and tensor of every place.
            offset: Added to the copies of our parameters, shape (d,).
            whole: What to copy instead of sharded tensors, by the identity of these.

        Returns:
            The copies of our parameters, leaves that require grad, in the order of ``names``.
        """
        whole = whole or {}
        copies = {id(p): self._copy(whole.get(id(p), p)) for p in self.originals}
        if offset is not None:
            for copied, part in zip(copies.values(), self.unflatten(offset), strict=True):
                copied.add_(part)
        for copied in copies.values():
            copied.requires_grad_()
        for container, key, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = self._copy(whole.get(id(tensor), tensor))
            container[key] = copies[id(tensor)]
        return [copies[id(p)] for p in self.originals]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join one tensor per parameter to a vector. Shape: (d,)."""
        return torch.cat([tensor.reshape(-1).to(self.dtype) for tensor in tensors])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector (d,) into one tensor per parameter."""
        parts = vector.split_with_sizes(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _copy(self, tensor: Tensor) -> Tensor:
        is_narrow = tensor.is_floating_point() and tensor.dtype.itemsize < self.dtype.itemsize
        return tensor.detach().to(
            self.dtype if self.widen and is_narrow else tensor.dtype, copy=True
        )
