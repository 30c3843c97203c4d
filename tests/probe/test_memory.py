"""Memory grows neither with the number of probes nor with that of steps."""

import gc
import os
import subprocess
import sys

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor

WIDTH = 600  # of two square layers: 0.7 million parameters, 2.7 MiB a vector
MIB = 2**20
TENSORS = (torch.Tensor, nn.Parameter)

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
    assert many < 1.1 * few  # 60 stored vectors would be 165 MiB


class Resident(lightning.Callback):
    """Resident memory and live tensors at some steps."""

    def __init__(self, steps):
        self.steps, self.mib, self.tensors = steps, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step in self.steps:
            gc.collect()
            with open("/proc/self/statm") as file:
                self.mib.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB)
            self.tensors.append(sum(type(o) in TENSORS for o in gc.get_objects()))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize(("num_params", "num_steps"), [(4, 1000), (50, 80)])
def test_memory_does_not_grow_over_a_thousand_probed_steps(tmp_path, num_params, num_steps):
    class Quadratic(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.linspace(1.0, 2.0, num_params))

        def training_step(self, batch, batch_idx):
            loss = (self.theta * batch).square().mean()
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-4)

    class Heterogeneity(GradientHeterogeneityMonitor):
        max_history = 10

    class Smoothness(LinfSmoothnessMonitor):
        max_history = 10

    monitors = [
        Heterogeneity(1, on_error="raise"),
        Smoothness(1, num_probes=4, num_batches=2, on_error="raise", max_overhead=None),
    ]
    resident = Resident([num_steps // 4, num_steps])
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        callbacks=[*monitors, resident],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=20,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Quadratic(), DataLoader(torch.randn(40, num_params), batch_size=2))
    for monitor in monitors:
        last = range(num_steps - 10, num_steps)
        assert [entry["step"] for entry in monitor.history] == list(last)
    assert resident.tensors[0] == resident.tensors[1]
    growth = resident.mib[1] - resident.mib[0]
    assert growth < 3  # 4 kB a step: the graph of one probe is larger
