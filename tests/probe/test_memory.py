"""Memory grows neither with the number of probes nor with that of steps."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG_TRAINING = Path(__file__).parents[1] / "support" / "long_training.py"

WIDTH = 600  # of two square layers: 0.7 million parameters, 2.7 MiB a vector
MIB = 2**20

MEASURE = """
import sys
import torch
from torch import nn
from lightning_linf import Landscape
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.partitions import choose_partitions

width, num_batches, num_probes = map(int, sys.argv[1:])

def read(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
batches = [torch.randn(8, width) for _ in range(num_batches)]
vector_gib = 4 * sum(p.numel() for p in module.parameters()) / 2**30
partitions = choose_partitions(module, ["tensor"])
before = read("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
with Landscape(
    module, batches, loss=lambda m, x: m(x).square().mean(), memory_gib=9 * vector_gib
) as landscape:
    # Two probes a pass over several batches: both numbers of probes then take several passes.
    assert landscape.probes_per_pass == min(num_batches, 2)
    measure_landscape(landscape, partitions, num_probes=num_probes)
print(read("VmHWM") - before)
"""


def output_of(command):
    # A fixed threshold: glibc then gives freed vectors back at once, and the peak is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def peak_mib(num_batches, num_probes):
    arguments = [str(n) for n in (WIDTH, num_batches, num_probes)]
    return float(output_of([sys.executable, "-c", MEASURE, *arguments]))


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the peak is read from /proc, which only Linux has",
)
@pytest.mark.parametrize("num_batches", [1, 2])
def test_sixty_more_probes_take_no_more_memory(num_batches):
    few, many = peak_mib(num_batches, 4), peak_mib(num_batches, 64)
    vector = 4 * (2 * WIDTH**2 + 2 * WIDTH) / MIB
    assert few > 6 * vector  # the measurement sees the vectors
    assert many < 1.1 * few  # 60 stored vectors would be 165 MiB


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="asks glibc for memory")
@pytest.mark.parametrize(("num_params", "num_steps"), [(4, 1000), (50, 80)])
def test_memory_does_not_grow_over_a_thousand_probed_steps(num_params, num_steps):
    # In a process of its own: other tests leave holes in the memory, and threads that fill them.
    command = [sys.executable, str(LONG_TRAINING), str(num_params), str(num_steps)]
    kept = json.loads(output_of(command).splitlines()[-1])
    assert kept["steps"] == [list(range(num_steps - 10, num_steps))] * 2
    assert kept["tensors"][0] == kept["tensors"][1]
    assert kept["mib"][1] - kept["mib"][0] < 1  # 1.4 kB a step: the graph of one probe is larger
