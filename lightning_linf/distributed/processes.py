"""The processes of a loop without a Trainer: those of torch.distributed, if it has started."""

from collections.abc import Callable

import torch
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """Give the number of this process, and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def sum_over_processes(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Give what adds up a tensor over all processes; None if there is one.

    Args:
        device: Where the backend takes tensors: that of the parameters.
    """
    if rank_and_size()[1] == 1:
        return None

    def reduce(tensor: Tensor) -> Tensor:
        total = tensor.to(device).contiguous()
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    return reduce
