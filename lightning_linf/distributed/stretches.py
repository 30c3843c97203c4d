"""Whole parameters from the stretches that ranks hold, differentiable any number of times."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses import FakeTensor  # torch documents it under this name
from torch.autograd import Function


class StretchExchange:
    """Join the stretches of all ranks, and add up what ranks have of a whole.

    A whole of n entries is cut as torch.chunk cuts it: each of W ranks has ceil(n / W) of them, the
    last ones perhaps fewer or none.

    Args:
        rank: Of this process.
        num_ranks: How many share a whole: all of the default process group.
        device: From which ranks send.
        together: Calls each exchange, for which all memory is at hand by then. It may raise; then
            it must do so on all ranks.
    """

    def __init__(
        self,
        rank: int,
        num_ranks: int,
        device: torch.device,
        together: Callable[[Callable[[], None]], None],
    ) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._device, self._together = device, together

    def join(self, stretch: Tensor, size: int) -> Tensor:
        """Give the whole of all stretches. Its storage may be longer. Shape: (size,)."""
        most = -(-size // self.num_ranks)
        if isinstance(stretch, FakeTensor):  # memory is counted, nothing is computed
            return stretch.new_empty(most * self.num_ranks)[:size]
        sent = _padded(stretch.to(self._device), most)
        received = sent.new_empty(most * self.num_ranks)
        self._together(partial(_gather, received, sent))
        return received.to(stretch.device)[:size]

    def add_up(self, wholes: Tensor) -> Tensor:
        """Add up wholes over ranks; give this rank's stretch of each. (r, size) -> (r, local)."""
        rows, size = wholes.shape
        most = -(-size // self.num_ranks)
        num_local = max(0, min(size - self.rank * most, most))
        if isinstance(wholes, FakeTensor):
            return wholes.new_empty(rows, num_local)
        sent = wholes.to(self._device)
        if size < most * self.num_ranks:
            sent = torch.nn.functional.pad(sent, (0, most * self.num_ranks - size))
        sent = sent.reshape(rows, self.num_ranks, most).transpose(0, 1).reshape(-1)
        received = sent.new_empty(rows * most)
        self._together(partial(_add_up, received, sent))
        return received.to(wholes.device).view(rows, most)[:, :num_local]


class Wholes(Protocol):
    """What gathers parameters where a graph needs them."""

    def whole(self, stretch: Tensor, number: int) -> Tensor:
        """Give a parameter whole, of its shape, without a graph."""

    def stretch(self, whole: Tensor, number: int) -> Tensor:
        """Add up a whole over ranks, without a graph, and give this rank's stretch of the sum."""

    def added_up(self, whole: Tensor, number: int) -> Tensor:
        """As :meth:`stretch`, with a graph where one is made."""


class Gather(Function):
    """A whole parameter as a function of the stretches of all ranks.

    torch's own functional collectives can be differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, stretch: Tensor, number: int, wholes: Wholes) -> Tensor:
        """Gather."""
        ctx.number, ctx.wholes = number, wholes
        ctx.set_materialize_grads(False)
        return wholes.whole(stretch, number)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Add up what comes back for the whole of each rank."""
        if grads[0] is None:
            return None, None, None
        return ctx.wholes.added_up(grads[0], ctx.number), None, None


class ReduceScatter(Function):
    """The stretch of a sum over ranks as a function of the wholes that these have."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, number: int, wholes: Wholes) -> Tensor:
        """Add up."""
        ctx.number, ctx.wholes = number, wholes
        ctx.set_materialize_grads(False)
        return wholes.stretch(whole, number)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Gather what comes back for each rank's stretch."""
        if grads[0] is None:
            return None, None, None
        whole: Tensor = Gather.apply(  # type: ignore[no-untyped-call]  # torch's
            grads[0], ctx.number, ctx.wholes
        )
        return whole, None, None


def is_exchange(node: Any) -> bool:
    """Tell whether a node of a graph is one of these functions, whose backward is exact."""
    return getattr(node, "_forward_cls", None) in (Gather, ReduceScatter)


def max_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """Take the maximum over the default process group; NaN where a rank has NaN."""
    is_nan = values.isnan()
    both = torch.stack([values.masked_fill(is_nan, -torch.inf), is_nan.to(values.dtype)])
    both = both.to(device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    largest, had_nan = both.to(values.device).unbind()
    return largest.masked_fill(had_nan > 0, torch.nan)


def _padded(stretch: Tensor, length: int) -> Tensor:
    missing = length - len(stretch)
    return torch.nn.functional.pad(stretch, (0, missing)) if missing else stretch.contiguous()


def _gather(received: Tensor, sent: Tensor) -> None:
    distributed = torch.distributed
    name = "all_gather_single" if hasattr(distributed, "all_gather_single") else None
    getattr(distributed, name or "all_gather_into_tensor")(received, sent)  # before torch 2.13


def _add_up(received: Tensor, sent: Tensor) -> None:
    distributed = torch.distributed
    name = "reduce_scatter_single" if hasattr(distributed, "reduce_scatter_single") else None
    getattr(distributed, name or "reduce_scatter_tensor")(received, sent)  # before torch 2.13
