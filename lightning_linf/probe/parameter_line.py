"""Live parameters moved along a step that has been made, and put back to the last bit."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_linf.functional.in_pieces import pieces_of
from lightning_linf.probe.fingerprint import fingerprint


class ParameterLine:
    r"""The parameters theta + c D of a step D, in the memory of one copy of them.

    Tensors are changed in place, so whoever holds them sees the moved ones: a module, and what
    shards it or compiles it. On the first move each tensor changes places with its copy from before
    the step: the copies then hold theta + D, from which :meth:`restore` takes its bits, and the
    tensors theta, the point of multiple 0. So they do again on each move to multiple 1 and from
    there. Any other move, from multiple c to c', is

    .. math:: \theta' + \frac{c' - 1}{c - 1} (\theta_c - \theta'), \qquad \theta' = \theta + D,

    in place, and by one rounding, which every further move multiplies by :math:`(c'-1)/(c-1)`: the
    distance to the line stays at a few roundings for each multiple of the step, unless c is near 1.

    Parameters of 16 bits: a step changes an entry by a few units in its last place, if at all.
    Whole multiples are exact but for entries that pass a power of two; others are rounded to them.

    Args:
        tensors: The parameters after the step, or this rank's parts of them.
        copies: As they were before it, of the same shapes; on other devices, perhaps. They are
            changed, too.
    """

    def __init__(self, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        self.multiple = 1.0
        """Where the tensors are."""
        self.has_moved = False
        """Whether the step has changed any entry; known after the first move."""
        pairs = zip(tensors, copies, strict=True)
        self._pieces = [piece for pair in pairs for piece in _in_pieces(*pair)]
        self._num_swapped = 0
        self._of_copies = 0.0  # where they are while the tensors are at 1
        self._print: list[int] = []

    def move(self, multiple: float) -> None:
        """Move the tensors to a multiple of the step; exactly so to 0 at first, and to 1."""
        if multiple == self.multiple:
            return
        if multiple == 1.0:
            for live, kept in reversed(self._pieces):
                self._swap_back(live, kept)
            self._of_copies, self.multiple = self.multiple, 1.0
        else:
            self._move_off(multiple)
        self._print = self._bits()

    def has_kept(self) -> bool:
        """Whether the tensors still have the bits that the last move gave them."""
        return self._bits() == self._print

    def _move_off(self, multiple: float) -> None:
        if self.multiple == 1.0:
            for live, kept in self._pieces:
                self._swap(live, kept)
            self.multiple = self._of_copies
        if multiple != self.multiple:
            weight = 1 - (multiple - 1) / (self.multiple - 1)
            for live, kept in self._pieces:
                live.lerp_(kept.to(live.device), weight)
            self.multiple = multiple

    def _bits(self) -> list[int]:
        return fingerprint(live for live, _ in self._pieces)

    def restore(self) -> None:
        """Put back the bits that the tensors had after the step; no move may follow."""
        for live, kept in self._pieces[: self._num_swapped]:
            live.copy_(kept)
        self.multiple = 1.0

    def _swap(self, live: Tensor, kept: Tensor) -> None:
        before = kept.to(live.device, copy=True)
        self.has_moved = self.has_moved or not torch.equal(live, before)
        kept.copy_(live)
        self._num_swapped += 1  # from here on `kept` has the bits
        live.copy_(before)

    def _swap_back(self, live: Tensor, kept: Tensor) -> None:
        before = live.clone()
        live.copy_(kept)
        self._num_swapped -= 1  # `live` has the bits again
        kept.copy_(before)


def _in_pieces(tensor: Tensor, copy: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give views of parts of two tensors, so that what is copied at a time is small."""
    tensor, copy = tensor.detach(), copy.detach()
    if not (tensor.is_contiguous() and copy.is_contiguous()):
        yield tensor, copy
        return
    tensor, copy = tensor.view(-1), copy.view(-1)
    for part in pieces_of(len(tensor)):
        yield tensor[part], copy[part]
