"""Functions run on several gloo ranks, and the weights that they give compared."""

import logging
import pickle
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # float64; sums over ranks are rounded in another order


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


def environment(rank, world_size=2):
    """Give variables by which Lightning finds the processes, so that it starts none."""
    return {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # not used: there is a process group
    }


class Heard(logging.Handler):
    """What this rank logs of its own failures while it is open."""

    def __enter__(self):
        self.messages = []
        logging.getLogger("lightning_linf.distributed.ranks").addHandler(self)
        return self.messages

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __exit__(self, *exception):
        logging.getLogger("lightning_linf.distributed.ranks").removeHandler(self)


def _run(rank, function, tmp_path, queue, world_size):
    torch.set_num_threads(1)
    method = f"file://{tmp_path}/rendezvous"
    dist.init_process_group(
        "gloo",
        method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),  # where one rank fails and the others wait
    )
    try:
        result = function(rank)
    except Exception as error:
        result = error
    try:
        queue.put(pickle.dumps((rank, result)))  # as bytes: shared memory ends with the process
    finally:
        dist.destroy_process_group()


def weights(module):
    """Whole weights, by name."""
    return {
        name: (p.full_tensor() if hasattr(p, "placements") else p).detach().clone()
        for name, p in module.named_parameters()
    }


def assert_close(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name, **(tolerance or CLOSE))
