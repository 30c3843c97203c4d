"""Parameters of which this rank holds its stretches alone, gathered where they are used."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_linf.distributed.stretches import Gather, ReduceScatter, StretchExchange
from lightning_linf.probe.stand_in import StandIn


class _Part(NamedTuple):
    """A view of a whole parameter, of which a graph needs no more than this."""

    stretch: Tensor
    number: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class GatheredAtUse:
    """Gather one parameter at a time, and keep whole ones out of graphs.

    What operations save of a whole parameter for their backward is replaced, and gathered again
    there: memory holds the parameter in use and the one before it. All ranks must use the same
    parameters in the same order, as under ``fully_shard``.

    Args:
        shapes: Of the parameters.
        exchange: Between the ranks.
    """

    def __init__(self, shapes: Sequence[torch.Size], exchange: StretchExchange) -> None:
        self._shapes, self._exchange = shapes, exchange
        self._known: WeakKeyDictionary[Any, tuple[Tensor, int]] = WeakKeyDictionary()
        self._last: tuple[Tensor, Tensor] | None = None  # a stretch and its whole (n,)
        self.collect: Callable[[Tensor, int], Tensor] | None = None
        """Called in place of :meth:`stretch` by a backward pass that makes no graph."""
        self.sums: Sequence[Tensor] | None = None
        """What such a pass adds to, one stretch for each parameter, where it takes parts early."""

    def stand_in(self, stretch: Tensor, number: int) -> StandIn:
        """Make what stands for a parameter, given this rank's stretch of it (n,)."""
        gather = partial(Gather.apply, stretch, number, self)
        return StandIn(gather, self._shapes[number], stretch, stretch.requires_grad)

    def whole(self, stretch: Tensor, number: int) -> Tensor:
        """Gather a parameter, of its shape, without a graph."""
        size = self._shapes[number].numel()
        if self._last is None or self._last[0] is not stretch:
            self._last = None  # freed first
            flat = self._exchange.join(stretch.detach(), size)
            self._known[flat.untyped_storage()] = stretch, number
            self._last = stretch, flat
        return self._last[1].view(self._shapes[number])

    def stretch(self, whole: Tensor, number: int) -> Tensor:
        """Add up a whole over ranks, and give this rank's stretch of the sum. Shape: (n,)."""
        return self.stretches(whole.reshape(1, -1))[0]

    def stretches(self, wholes: Tensor) -> Tensor:
        """As :meth:`stretch`, of several at once. Shape: (r, size) -> (r, n)."""
        return self._exchange.add_up(wholes)

    def added_up(self, whole: Tensor, number: int) -> Tensor:
        """As :meth:`stretch`, with a graph, or as the one who collects wants it."""
        if self.collect is not None:
            return self.collect(whole, number)
        added: Tensor = ReduceScatter.apply(  # type: ignore[no-untyped-call]  # torch's
            whole, number, self
        )
        return added

    def take(self, whole: Tensor, number: int) -> None:
        """Add a whole, added up over ranks, to ``sums``."""
        assert self.sums is not None
        self.sums[number].add_((self.collect or self.stretch)(whole, number))

    def kept_out_of_graphs(self) -> AbstractContextManager[None]:
        """Replace whole parameters in all graphs that are made inside."""
        return saved_tensors_hooks(self._pack, self._unpack)

    def forget(self) -> None:
        """Free the parameter gathered last."""
        self._last = None

    def _pack(self, tensor: Tensor) -> Any:
        known = None
        if tensor.layout == torch.strided:
            known = self._known.get(tensor.untyped_storage())
        if known is None or tensor.dtype != known[0].dtype:
            return tensor, tensor._version
        return _Part(*known, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _Part):
            whole = self.whole(packed.stretch, packed.number)
            return whole.as_strided(packed.size, packed.stride, packed.offset)
        tensor: Tensor = packed[0]
        if tensor._version != packed[1]:  # torch does not look where there are hooks
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {tuple(tensor.shape)}."
            )
        return tensor
