"""Tables of addresses and sizes, by which one launch reaches many tensors.

A table is made once and found again by its numbers, as long as tensors stay where they are. Inside
the capture of a CUDA graph, the copy of a table from the host would be replayed from memory that is
long gone, so there the numbers go along as arguments of kernels.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

_MAX_RECENT = 64
_recent: OrderedDict[Hashable, Tensor] = OrderedDict()
_captured: list[Tensor] = []  # a graph may read them as long as the process lives


def table_of(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Give whole numbers as an int64 tensor on the device, without waiting for it: (numbers,).

    It must not be written to. ``device`` needs its index, as a tensor's device has it.
    """
    values = tuple(numbers)
    return _found((device, values), lambda: _table(values, device))


def owners_of_items(counts: Sequence[int], device: torch.device) -> Tensor:
    """Number the owner of every item, of owners that have so many each: (sum of counts,).

    Example: counts of 2 and 3 give 0, 0, 1, 1, 1.
    """
    values, total = tuple(counts), sum(counts)
    return _found(
        ("owners", device, values),
        lambda: torch.repeat_interleave(table_of(values, device), output_size=total),
    )


def _found(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """Find a tensor made before, or make it."""
    is_captured = _is_capturing()
    table = _recent.get(key)
    if table is None:
        table = make()
        if not is_captured:  # what a graph makes is there once it is replayed, not now
            _recent[key] = table
            if len(_recent) > _MAX_RECENT:
                _recent.popitem(last=False)
    else:
        _recent.move_to_end(key)
    if is_captured:
        _captured.append(table)
    return table


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _table(values: tuple[int, ...], device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.int64)
    if _is_capturing():
        table = torch.zeros(len(values), dtype=torch.int64, device=device)
        if values:
            torch._foreach_add_(list(table.unbind()), list(values))
        return table
    host = torch.tensor(values, dtype=torch.int64, pin_memory=True)
    return host.to(device, non_blocking=True)
