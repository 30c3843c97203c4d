"""Every rank sends every other one a part of a tensor."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


def all_to_all_over(group: Any, device_type: str) -> Callable[..., Tensor]:
    """Make a function by which the ranks of a process group exchange parts of tensors.

    Args:
        group: The process group. None: all ranks.
        device_type: From where its backend sends; tensors of other devices are copied there.

    Returns:
        A function of a tensor (n,), how many of its entries go to each rank, and how many come from
        each. It gives what has come, joined in the order of ranks, on the device of the tensor.
    """
    return partial(_all_to_all, group, device_type)


def _all_to_all(
    group: Any,
    device_type: str,
    tensor: Tensor,
    num_sent: Sequence[int],
    num_received: Sequence[int],
) -> Tensor:
    sent = tensor if tensor.device.type == device_type else tensor.to(device_type)
    received = sent.new_empty(sum(num_received))
    torch.distributed.all_to_all_single(
        received, sent, list(num_received), list(num_sent), group=group
    )
    return received.to(tensor.device)
