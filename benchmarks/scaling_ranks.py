"""Products of a landscape whose batches lie on several ranks, processes of this machine, timed."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from gloo_ranks import on_ranks
from report_lines import layer_loss, linear_layers
from stopwatch import medians
from torch import Tensor

from lightning_linf.probe import Landscape

ROWS = 16  # of the batch of a rank


def seconds_by_ranks(num_ranks: Sequence[int], width: int, rounds: int) -> dict[int, float]:
    """Time a product on the first r processes, for each r: the median of the first of them."""
    found: dict[int, float] = on_ranks(max(num_ranks), _seconds_of_each, num_ranks, width, rounds)[
        0
    ]
    return found


def _seconds_of_each(
    rank: int, num_ranks: Sequence[int], width: int, rounds: int
) -> dict[int, float]:
    found: dict[int, float] = {}
    for count in num_ranks:
        group = dist.new_group(list(range(count)))
        if rank < count:
            found[count] = _seconds(rank, group, width, rounds)
        dist.barrier()
    return found


def _seconds(rank: int, group: Any, width: int, rounds: int) -> float:
    def reduce(tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=group)
        return tensor

    device = torch.device("cpu")
    module = linear_layers(width, device)
    batch = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(rank))
    with Landscape(module, [batch], loss=layer_loss, reduce=reduce) as landscape:
        vector = torch.ones(landscape.parameters.num_params)
        return medians({"product": lambda: landscape.hvp(vector)}, device, rounds)["product"]
