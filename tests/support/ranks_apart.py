"""Ranks that may be killed: processes whose ends are seen, and whose results are files."""

import faulthandler
import os
import pickle
import signal
import time
from datetime import timedelta

import torch
import torch.multiprocessing as mp
from support.ranks import join

LIMIT_SECONDS = 300


def run_apart(function, tmp_path, world_size, timeout_seconds=2 * LIMIT_SECONDS):
    """Run ``function(rank)`` on gloo ranks whose collectives give up after ``timeout_seconds``.

    Returns by rank the exit code, None of one that had not ended after ``LIMIT_SECONDS``, as one
    that waits in a collective for the usual timeout; and the result or error, or else where it
    stood then.
    """
    context = mp.get_context("fork")
    tmp_path.mkdir(exist_ok=True)
    arguments = (function, tmp_path, world_size, timeout_seconds)
    processes = [
        context.Process(target=_run, args=(rank, *arguments)) for rank in range(world_size)
    ]
    begin = time.monotonic()
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.1, LIMIT_SECONDS - (time.monotonic() - begin)))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGABRT)  # it writes where it stands
                process.join(10)
            process.kill()  # one that has stopped itself
            process.join()
    return codes, [_result(tmp_path, rank) for rank in range(world_size)]


def _result(tmp_path, rank):
    path, stood = tmp_path / f"result {rank}", tmp_path / f"stood {rank}"
    if path.exists():
        return pickle.loads(path.read_bytes())
    return (stood.read_text() if stood.exists() else "") or None


def _run(rank, function, tmp_path, world_size, timeout_seconds):
    torch.set_num_threads(1)
    stood = open(tmp_path / f"stood {rank}", "w")  # to the end of the process
    faulthandler.enable(stood)
    join(tmp_path, rank, world_size, timedelta(seconds=timeout_seconds))
    try:
        result = function(rank)
    except BaseException as error:
        result = error
    (tmp_path / f"result {rank}").write_bytes(pickle.dumps(result))
    os._exit(0)  # to leave the group in order would take the ranks that are gone
