"""Several calls at a time, each in a process of its own, until time is up."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_jobs(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], num_jobs: int, deadline: float
) -> Iterator[tuple[int, ResultT]]:
    """Call a function of each item, and yield its place and result as soon as there is one.

    Args:
        function: Can be pickled, and so can items and results, unless ``num_jobs`` is 1.
        items: In the order in which they are begun.
        num_jobs: How many calls go on at a time; they share the cores.
        deadline: Value of :func:`time.monotonic` after which none is begun.
    """
    if num_jobs == 1 or len(items) < 2:
        for i, item in enumerate(items):
            if time.monotonic() > deadline:
                return
            yield i, function(item)
        return
    num_threads = max(1, (os.cpu_count() or 1) // num_jobs)
    context = multiprocessing.get_context("spawn")  # a fork would break CUDA and thread pools
    left = iter(range(len(items)))
    with ProcessPoolExecutor(num_jobs, context, _start_job, (num_threads,)) as pool:
        running: dict[Future[ResultT], int] = {}
        while True:
            while len(running) < num_jobs and time.monotonic() <= deadline:
                if (started := next(left, None)) is None:
                    break
                running[pool.submit(function, items[started])] = started
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _start_job(num_threads: int) -> None:
    """Prepare a process for calls; it ends when the one that started it does, even if killed."""
    torch.set_num_threads(num_threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
