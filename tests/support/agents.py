"""Agents of torchrun: started, waited for within a limit, and ended with all that they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_GRACE_SECONDS = 30  # for the others, once one has failed: an agent waits minutes for another one


def start_agent(folder, *arguments, **environment):
    """Run torchrun in a folder, with what it says in the files ``out`` and ``err`` there."""
    folder.mkdir(exist_ok=True)
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONFAULTHANDLER": "1",  # to say where it stands when it is ended
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            cwd=folder,
            stdout=out,
            stderr=err,
        )


def exit_codes(agents, limit_seconds):
    """Wait for all. One that does not end in time has None; its ``err`` says where it stood."""
    end = time.monotonic() + limit_seconds
    try:
        while any(agent.poll() is None for agent in agents) and time.monotonic() < end:
            if any(agent.poll() for agent in agents):
                end = min(end, time.monotonic() + _GRACE_SECONDS)
            time.sleep(0.1)
        return [agent.poll() for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                _end(agent)


def _end(agent):
    started = [agent.pid, *_descendants(agent.pid)]
    for number in (signal.SIGABRT, signal.SIGKILL):
        for pid in reversed(started):  # workers first, lest the agent ends them
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        time.sleep(2)  # to write
    agent.wait()


def _descendants(pid):
    """Find all processes that one has started, and these: workers are in sessions of their own."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(path.parent.name)] = int(fields[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]
