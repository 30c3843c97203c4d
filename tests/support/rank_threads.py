"""Ranks as threads of one process, which exchange parts of vectors without a process group."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class Ranks:
    """A number of ranks, and what they have sent.

    Attributes:
        num_sent: By rank, how many numbers went to other ranks.
        num_messages: By rank, how often all ranks exchanged something.
    """

    def __init__(self, num_ranks):
        self.num_ranks = num_ranks
        self._barrier = threading.Barrier(num_ranks, timeout=600)
        self._sent = [None] * num_ranks
        self.num_sent, self.num_messages = [0] * num_ranks, [0] * num_ranks

    def run(self, function):
        """Call ``function(rank, all_to_all)`` on every rank, and return all results."""

        def on_rank(rank):
            try:
                return function(rank, lambda *arguments: self._all_to_all(rank, *arguments))
            except BaseException:
                self._barrier.abort()  # nobody waits for a rank that has failed
                raise

        with ThreadPoolExecutor(self.num_ranks) as pool:
            return list(pool.map(on_rank, range(self.num_ranks)))

    def _all_to_all(self, rank, tensor, num_sent, num_received):
        assert sum(num_sent) == len(tensor)
        self._sent[rank] = tensor.split(list(num_sent))
        self.num_sent[rank] += len(tensor) - num_sent[rank]
        self.num_messages[rank] += 1
        self._barrier.wait()
        received = [sent[rank] for sent in self._sent]
        assert list(map(len, received)) == list(num_received)
        self._barrier.wait()
        return torch.cat(received)
