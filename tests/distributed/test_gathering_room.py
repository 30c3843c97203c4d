"""Ranks agree that all have the memory for what they will receive, before they send anything."""

import pytest
import torch
import torch.distributed as dist
from support.ranks import in_two_processes
from torch import nn

from lightning_linf.distributed import gathering
from lightning_linf.distributed.gathering import gather
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError, ProbeMemoryError


def reduce(tensor):
    dist.all_reduce(tensor)
    return tensor


def sharded():
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
    whole = [p.detach().clone() for p in module.parameters()]
    return list(fully_shard(module).parameters()), whole


@pytest.mark.parametrize("fault", ["room", "before"])
def test_a_rank_without_room_is_told_to_all_before_anything_is_sent(tmp_path, monkeypatch, fault):
    class Starved(gathering._Message):
        def __init__(self, cut_tensors):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28 GiB.")

    def on_rank(rank):
        parameters, whole = sharded()
        ranks = Ranks(reduce, torch.device("cpu"))

        def work():
            if rank == 1 and fault == "before":
                raise ValueError("on one rank")
            return gather(parameters)

        kinds = []
        with monkeypatch.context() as patch:
            if rank == 1 and fault == "room":
                patch.setattr(gathering, "_Message", Starved)
            try:
                ranks.together(work)
            except (ProbeError, ValueError) as error:
                kinds.append(type(error))
        fault_is_over = ranks.all_know
        gathered = ranks.together(lambda: gather(parameters))
        return kinds, fault_is_over, all(map(torch.equal, gathered, whole)), ranks.all_know

    results = in_two_processes(on_rank, tmp_path)
    expected = {
        "room": ([ProbeMemoryError], [ProbeMemoryError]),
        "before": ([ProbeError], [ValueError]),
    }[fault]
    for (kinds, knew, is_same, knows), kind in zip(results, expected, strict=True):
        assert kinds == kind
        assert knew
        assert is_same
        assert not knows
