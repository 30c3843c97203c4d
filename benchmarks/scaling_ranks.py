"""Products of a landscape whose batches lie on several ranks, processes of this machine, timed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from report_lines import layer_loss, linear_layers
from stopwatch import medians
from torch import Tensor

from lightning_linf.probe import Landscape

ROWS = 16  # of the batch of a rank


def seconds_by_ranks(num_ranks: Sequence[int], width: int, rounds: int) -> dict[int, float]:
    """Time a product on the first r processes, for each r: the median of the first of them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = list(num_ranks), width, rounds, folder
        torch.multiprocessing.spawn(_run, arguments, nprocs=max(num_ranks))
        found: dict[int, float] = torch.load(Path(folder) / "seconds.pt")
    return found


def _run(rank: int, num_ranks: Sequence[int], width: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=max(num_ranks)
    )
    found: dict[int, float] = {}
    for count in num_ranks:
        group = dist.new_group(list(range(count)))
        if rank < count:
            found[count] = _seconds(rank, group, width, rounds)
        dist.barrier()
    if rank == 0:
        torch.save(found, Path(folder) / "seconds.pt")
    dist.destroy_process_group()


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
