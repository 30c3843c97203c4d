"""A rank that waits in vain says for whom, and where that one was last seen."""

import logging
import os
import re
import signal
import threading
import time
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
from support.ranks import in_two_processes
from support.ranks_apart import run_apart

from lightning_linf.distributed import heartbeat
from lightning_linf.distributed.heartbeat import phase
from lightning_linf.distributed.place import HERE, Note
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.distributed.roll_call import connect, how_missing, key
from lightning_linf.errors import RankLostError

CPU = torch.device("cpu")


def reduce(tensor):
    dist.all_reduce(tensor)
    return tensor


def meet(num_times):
    ranks = Ranks(reduce, CPU)
    for number in range(num_times):
        HERE.report_progress(f"{number} of {num_times} products done")
        assert float(ranks.sum(torch.ones(3))[0]) == dist.get_world_size()
    return ranks


def tell(rank):
    """Wait until this rank's heartbeat has told where it is, which it does every second."""
    store = connect()
    while not store.check([key(rank)]):
        time.sleep(0.1)


class Said(logging.Handler):
    """What the heartbeat of this rank reports."""

    def __init__(self):
        super().__init__()
        self.texts = []
        logging.getLogger("lightning_linf.distributed.heartbeat").addHandler(self)

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.mark.slow
def test_a_rank_that_runs_and_does_not_come_is_named_with_its_phase(tmp_path, monkeypatch):
    timeout = 30
    assert 0 < heartbeat._PATIENCE < 1  # before the group gives up
    monkeypatch.setattr(heartbeat, "_PATIENCE", 0.2)  # here long before, on a busy machine, too

    def on_rank(rank):
        said = Said()
        with phase("measure"), phase("products"):
            ranks = meet(2)
            tell(rank)
            if rank == 1:
                with phase("writing"):
                    while not all((tmp_path / f"result {other}").exists() for other in (0, 2)):
                        time.sleep(0.1)
                return None
            begin = time.monotonic()
            try:
                ranks.sum(torch.ones(3))
            except RankLostError as error:
                return str(error), time.monotonic() - begin, said.texts, ranks.all_know

    codes, results = run_apart(on_rank, tmp_path, 3, timeout_seconds=timeout)
    assert codes == [0, 0, 0], results
    for text, seconds, said, all_know in (results[0], results[2]):
        assert text.startswith(
            "probe: a collective failed in: measure, products, 1 of 2 products done. Rank 1 is "
            "missing: it runs, and is in: measure, products, writing. Look at the last lines"
        )
        assert "Rank 0" not in text
        assert "Rank 2" not in text
        assert "a longer timeout, as in DDPStrategy" in text
        assert timeout <= seconds
        assert all_know
        assert len(said) == 1
        waited = re.search(
            r"has waited (\d+) seconds in: measure, products, 1 of 2 products done. Rank 1", said[0]
        )
        assert 0.2 * timeout <= int(waited[1]) < timeout


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_where_it_was(tmp_path):
    def on_rank(rank):
        with phase("measure"):
            meet(1)
            tell(rank)
            if rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            with phase("products"):
                meet(5)

    codes, results = run_apart(on_rank, tmp_path, 4)
    assert codes == [0, 0, -signal.SIGKILL, 0], results
    for rank in (0, 1, 3):
        assert isinstance(results[rank], RankLostError)
        assert (
            "failed in: measure, products, 0 of 5 products done. Rank 2 is missing: it has told "
            "nothing for 3 seconds, and was last in: measure, 0 of 1 products done."
            in str(results[rank])
        )


@pytest.mark.slow
def test_memory_that_runs_out_inside_a_collective_ends_all_ranks(tmp_path):
    def on_rank(rank):
        def starved(tensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

        with phase("products"):
            Ranks(starved if rank == 1 else reduce, CPU).sum(torch.ones(3))

    codes, results = run_apart(on_rank, tmp_path, 2)
    assert codes == [0, 0], results
    assert all(isinstance(result, RankLostError) for result in results)
    assert "This rank ran out of memory in it, and the others wait there" in str(results[1])
    assert "Rank 1 is missing" in str(results[0])


def test_a_rank_that_dies_in_a_test_fails_it_whatever_the_folder_is_called(tmp_path):
    def on_rank(rank):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    (tmp_path / "a #1?").mkdir()
    with pytest.raises(AssertionError, match=r"\[0, -9\], \['done', EOFError\(\)\]"):
        in_two_processes(on_rank, tmp_path / "a #1?")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"num_meetings": 6}, "Rank 3 is missing: it runs, and is in: gradient."),
        ({"num_meetings": 6, "gave_up": True}, ""),
        ({"beat": 0}, "has told nothing for 3 seconds, and was last in: gradient."),
        ({"beat": 0, "in_probe": False}, ""),  # it goes on training while this one writes
        ({"beat": 0, "in_probe": False, "num_meetings": 6}, "and was last in: gradient."),
        (None, "Rank 3 is missing: it has told of no probe."),
    ],
)
def test_who_is_missing(monkeypatch, change, expected):
    monkeypatch.setattr(HERE, "num_meetings", 7)
    before = Note(0, 6, False, True, "check of the loss")
    now = Note(1, 7, False, True, "gradient")
    assert Note.from_bytes(now.to_text().encode()) == now
    text = how_missing(3, before, None if change is None else now._replace(**change))
    assert text.endswith(expected)
    assert bool(text) == bool(expected)


def test_what_is_lost_is_not_asked_for_again():
    calls = []

    def broken(tensor):
        calls.append(len(tensor))
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    ranks = Ranks(broken, CPU)
    with pytest.raises(
        RankLostError, match=r"in: no probe\. No rank is missing\..*by peer"
    ) as lost:
        ranks.together(lambda: ranks.sum(torch.ones(7)))
    assert calls == [7]  # nobody was told of the failure
    assert ranks.agree(lost.value, 1.0, silent=True) == (1.0, 0.0)
    with pytest.raises(RankLostError):
        ranks.together(lambda: (_ for _ in ()).throw(lost.value))
    assert calls == [7]
    assert ranks.all_know


def test_phases_nest_and_one_process_alone_has_no_thread():
    before = set(threading.enumerate())
    with phase("measure"):
        HERE.report_progress("3 done")
        with suppress(KeyError), phase("writing"):
            assert str(HERE) == "measure, writing"
            assert set(threading.enumerate()) <= before
            raise KeyError
        assert str(HERE) == "measure"
    assert str(HERE) == "no probe"
