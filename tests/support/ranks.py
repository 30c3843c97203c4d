"""Functions run on several gloo ranks, and the weights that they give compared."""

import logging
import pickle
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_SECONDS = 600  # where ranks wait in vain; a busy machine must not come near it
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # float64; sums over ranks are rounded in another order


def in_processes(function, tmp_path, world_size):
    """Run ``function(rank)`` on gloo ranks and return all results, errors among them."""
    context = mp.get_context("fork")  # spawn imports torch again: 25 s
    processes, receivers = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (rank, function, tmp_path, sender, world_size)
        processes.append(context.Process(target=_run, args=arguments))
        processes[-1].start()
        sender.close()  # the last end but that of the rank, with which the pipe ends
        receivers.append(receiver)
    results = [_received(receiver) for receiver in receivers]
    for process in processes:
        process.join(LIMIT_SECONDS)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world_size, (codes, results)
    return results


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


def join(folder, rank, world_size, timeout):
    """Enter the gloo group of the ranks that meet in a folder."""
    store = dist.FileStore(str(folder / "rendezvous"), world_size)  # a URL takes not every name
    store.set_timeout(timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)


def _received(receiver):
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError as error:  # it was killed, or torch aborted it
        return error


def _run(rank, function, tmp_path, sender, world_size):
    torch.set_num_threads(1)
    join(tmp_path, rank, world_size, timedelta(seconds=LIMIT_SECONDS))
    try:
        result = function(rank)
    except Exception as error:
        result = error
    try:
        sender.send_bytes(pickle.dumps(result))  # as bytes: shared memory ends with the process
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
