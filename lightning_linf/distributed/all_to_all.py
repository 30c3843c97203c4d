"""Every rank sends every other one a part of a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Process groups by their ranks, each with the group of all ranks of the time: that is another one
# after torch.distributed was started again.
_GROUPS: dict[tuple[int, ...], tuple[Any, Any]] = {}


@dataclass(frozen=True)
class AllToAll:
    """A function by which some ranks exchange parts of tensors.

    It holds no process group, so that copies and pickles of it are possible.

    Args:
        ranks: Of all that take part, numbered among all ranks of the training.
        device_type: From where their backend sends. Other tensors are copied there and back.
    """

    ranks: tuple[int, ...]
    device_type: str

    def __call__(
        self, tensor: Tensor, num_sent: Sequence[int], num_received: Sequence[int]
    ) -> Tensor:
        """Send to each rank its part of ``tensor``.

        Args:
            tensor: What is sent, joined in the order of ranks: (n,).
            num_sent: How many entries go to each rank; this one counts as any other.
            num_received: How many come from each.

        Returns:
            What has come, joined in the order of ranks, on the device of ``tensor``.
        """
        sent = tensor if tensor.device.type == self.device_type else tensor.to(self.device_type)
        received = sent.new_empty(sum(num_received))
        torch.distributed.all_to_all_single(
            received, sent, list(num_received), list(num_sent), group=group_of(self.ranks)
        )
        return received.to(tensor.device)


def all_to_all_over(group: Any, device_type: str) -> AllToAll:
    """Make the function of a process group; None: of all ranks."""
    ranks = tuple(torch.distributed.get_process_group_ranks(group))
    remember_group(ranks, group or torch.distributed.group.WORLD)
    return AllToAll(ranks, device_type)


def group_of(ranks: tuple[int, ...]) -> Any:
    """Give a process group of these ranks; if there is none yet, all of them make it together."""
    world = torch.distributed.group.WORLD
    made_of, group = _GROUPS.get(ranks, (None, None))
    if group is None or made_of is not world:
        if len(ranks) == torch.distributed.get_world_size():
            group = world
        else:
            group = torch.distributed.new_group(list(ranks), use_local_synchronization=True)
        remember_group(ranks, group)
    return group


def remember_group(ranks: tuple[int, ...], group: Any) -> None:
    """Let :func:`group_of` give a group that is there already, instead of a new one."""
    _GROUPS[ranks] = torch.distributed.group.WORLD, group
