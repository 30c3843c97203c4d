"""Peak memory of a probe does not grow with the number of probes."""

import os
import subprocess
import sys

import pytest

WIDTH = 1250  # of two square layers: 3.1 million parameters, 12 MiB a vector
MIB = 2**20

MEASURE = """
import sys
import torch
from torch import nn
from lightning_linf import Landscape
from lightning_linf.probe.geometry import choose_partitions, measure_landscape

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


def peak_mib(num_batches, num_probes):
    # A fixed threshold: glibc then gives freed vectors back at once, and the peak is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB), "OMP_NUM_THREADS": "1"}
    arguments = [str(n) for n in (WIDTH, num_batches, num_probes)]
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return float(finished.stdout)


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
    assert many < 1.1 * few  # 60 stored vectors would be 720 MiB
