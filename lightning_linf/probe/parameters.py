"""Trainable parameters as one vector, and fresh copies in a module's tables."""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_linf.distributed.shards import is_sharded
from lightning_linf.errors import ProbeError
from lightning_linf.functional.dtypes import working_dtype
from lightning_linf.functional.vector_shards import VectorShards
from lightning_linf.partition.pieces import trainable_parameters


class ParameterVector:
    """The trainable parameters of a module, in its own order, as one vector of d numbers.

    A tied parameter counts once. Working dtype: float32, or wider if a parameter is. Once ranks
    divide the vector (``shards``), vectors here are this rank's shards of d numbers in all, and a
    part of one is a stretch of a parameter.

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
        self.shards: VectorShards | None = None

    @property
    def num_local(self) -> int:
        """Number of entries that a vector has on this rank; d unless ranks divide vectors."""
        return self.num_params if self.shards is None else self.shards.num_local

    @property
    def most_local(self) -> int:
        """Largest number of entries that a vector has on any rank."""
        return self.num_params if self.shards is None else sum(map(len, self.shards.stretches(0)))

    def zeros(self, *leading: int) -> Tensor:
        """Make zero vectors, in the working dtype. Shape: (*leading, d)."""
        return torch.zeros(*leading, self.num_local, dtype=self.dtype, device=self.device)

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
        copies = {id(p): self.copy((whole or {}).get(id(p), p)) for p in self.originals}
        if offset is not None:
            for copied, part in zip(copies.values(), self.unflatten(offset), strict=True):
                copied.add_(part)
        for copied in copies.values():
            copied.requires_grad_()
        self.put_in_place(places, copies, whole or {})
        return [copies[id(p)] for p in self.originals]

    def put_in_place(
        self,
        places: Iterable[tuple[Any, Any, Tensor]],
        copies: dict[int, Tensor],
        whole: Mapping[int, Tensor],
    ) -> None:
        """Put copies, by the identity of what they are copies of, into all places of a module.

        Those that are missing are made, and added to ``copies``.
        """
        for container, key, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = self.copy(whole.get(id(tensor), tensor))
            container[key] = copies[id(tensor)]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join one tensor per parameter to a vector. Shape: (d,).

        If ranks divide vectors: tensors of the shapes of the parameters, whole or sharded, of which
        stretches are taken (all ranks must call this), or stretches, as :meth:`unflatten` gives.
        """
        if self.shards is not None:
            cuts = self.shards.stretches()
            tensors = [
                t if is_stretch(t, cut, shape) else stretch_of(t, cut)
                for t, cut, shape in zip(tensors, cuts, self.shapes, strict=True)
            ]
        return torch.cat([tensor.reshape(-1).to(self.dtype) for tensor in tensors])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector (d,) into one tensor per parameter, of its shape; a shard into stretches."""
        if self.shards is not None:
            return list(vector.split_with_sizes(list(map(len, self.shards.stretches()))))
        parts = vector.split_with_sizes(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def row_of(self, vector: Tensor, place: int, row: int) -> Tensor:
        """Give what a vector (d,) has here of a row of a parameter, as a view. Shape: (n,)."""
        part = self.unflatten(vector)[place].reshape(-1)
        length = self.shapes[place][1:].numel()
        first = 0 if self.shards is None else self.shards.stretches()[place].start
        start, stop = (
            min(max(edge - first, 0), len(part)) for edge in (row * length, (row + 1) * length)
        )
        return part[start:stop]

    def copy(self, tensor: Tensor, *, always: bool = True) -> Tensor:
        """Copy a parameter or a buffer, to the working dtype if a narrow one is to be widened.

        If not ``always``, one that has its dtype already is given as it is, without a graph.
        """
        return tensor.detach().to(self.dtype_of(tensor), copy=always)

    def dtype_of(self, tensor: Tensor) -> torch.dtype:
        """Give the dtype in which a parameter or a buffer is probed."""
        is_narrow = tensor.is_floating_point() and tensor.dtype.itemsize < self.dtype.itemsize
        return self.dtype if self.widen and is_narrow else tensor.dtype


def is_stretch(tensor: Tensor, cut: range, shape: torch.Size) -> bool:
    """Tell a stretch of a parameter from a tensor of the shape of all of it."""
    return not is_sharded(tensor) and tensor.shape == (len(cut),) != tuple(shape)


def stretch_of(tensor: Tensor, cut: range) -> Tensor:
    """Give some entries of a tensor, gathered first if it is sharded. Shape: (len(cut),)."""
    with torch.no_grad():
        whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
        return whole.detach().reshape(-1)[cut.start : cut.stop]
