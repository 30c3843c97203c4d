"""Ranks of a benchmark: processes of this machine, joined by gloo."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(
    num_ranks: int,
    function: Callable[..., Any],
    *arguments: Any,
    start_method: Literal["spawn", "fork"] = "spawn",
) -> list[Any]:
    """Call ``function(rank, *arguments)`` on new processes of one thread; give what each returns.

    That may be numbers, tensors, and tuples, lists and dicts of them. An exception on one of the
    processes is raised here, too, and ends the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = function, num_ranks, arguments, folder
        mp.start_processes(_run, given, num_ranks, start_method=start_method)
        return [torch.load(_file(folder, rank)) for rank in range(num_ranks)]


def _run(
    rank: int,
    function: Callable[..., Any],
    num_ranks: int,
    arguments: tuple[Any, ...],
    folder: str,
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "meet"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    torch.save(function(rank, *arguments), _file(folder, rank))
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo may still hold tensors of the last collective. Where Python has begun to take
    # itself apart when it frees them, torch aborts the process (seen with 2.13).
    os._exit(0)


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.pt"
