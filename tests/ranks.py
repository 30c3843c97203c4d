"""Functions run on several gloo ranks."""

import pickle

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(function, tmp_path, world_size):
    """Run ``function(rank)`` on gloo ranks and return all results, errors among them."""
    context = mp.get_context("fork")  # spawn imports torch again: 25 s
    queue = context.SimpleQueue()
    arguments = (function, tmp_path, queue, world_size)
    processes = [
        context.Process(target=_run, args=(rank, *arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    results = dict(pickle.loads(queue.get()) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [results[rank] for rank in range(world_size)]


def in_two_processes(function, tmp_path):
    """Run ``function(rank)`` on two gloo ranks and return both results."""
    return in_processes(function, tmp_path, 2)


def _run(rank, function, tmp_path, queue, world_size):
    torch.set_num_threads(1)
    method = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", method, rank=rank, world_size=world_size)
    try:
        result = function(rank)
    except Exception as error:
        result = error
    try:
        queue.put(pickle.dumps((rank, result)))  # as bytes: shared memory ends with the process
    finally:
        dist.destroy_process_group()
