"""How much time do the monitors take, and does `max_overhead` hold?

    python benchmarks/overhead.py                                # one process, about 9 minutes
    python benchmarks/overhead.py --devices 2 --strategy ddp     # two processes
    python benchmarks/overhead.py --accelerator gpu

Trains the GPT-2 of `recipes/gpt2.py` (preset tiny) with the gradient's heterogeneity at every tenth
step: what such a step takes beyond the mean of the steps before and after it, over the time of ten
steps, ± the standard error of the mean over all such steps.

Then without monitors, and with smoothness under several limits `max_overhead`, due at every fifth
step. "read out" is `probe_overhead` at the end, by the monitor's own clocks; the limit is what it
should be at most. "clock" is the time of the whole training over that of the training without
monitors just before, less 1: of several rounds the median, and the least and the most, which tell
the noise. A probe is made cheap here (4 probes, on 2 sequences), so that there are many.
"""

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from stopwatch import heading

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from gpt2 import Config, prepare


class StepTimes(Callback):
    """Seconds of each training step, from an idle device to an idle device."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_train_batch_start(self, trainer: Trainer, *rest: object) -> None:
        """Start the clock."""
        self._begin = self._now(trainer)

    def on_train_batch_end(self, trainer: Trainer, *rest: object) -> None:
        """Stop it."""
        self.seconds.append(self._now(trainer) - self._begin)

    def _now(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def share_of_every(self, period: int) -> tuple[float, float]:
        """What each ``period``-th step takes beyond its neighbours, over a period; its error."""
        due = range(2 * period - 1, len(self.seconds) - 1, period)  # the first warms up
        beyond = [self.seconds[i] - (self.seconds[i - 1] + self.seconds[i + 1]) / 2 for i in due]
        whole = period * statistics.mean(self.seconds)
        error = statistics.stdev(beyond) / math.sqrt(len(beyond))
        return statistics.mean(beyond) / whole, error / whole


def train(config: Config, monitors: Sequence[Callback], folder: str) -> tuple[float, Trainer]:
    """Train with some monitors; seconds, and the trainer."""
    clock = Timer()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer, module, data = prepare(
        config, [clock, *monitors], default_root_dir=folder, limit_val_batches=0, **options
    )
    trainer.fit(module, data)
    return clock.time_elapsed("train"), trainer


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limits", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    choices = parser.parse_args()
    config = replace(
        Config(),
        max_steps=choices.steps,
        accelerator=choices.accelerator,
        devices=choices.devices,
        strategy=choices.strategy,
        micro_batch=16 // choices.devices,
        probe_sequences=2,
    )
    read_out: dict[str, list[float]] = defaultdict(list)
    clock: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        train(replace(config, max_steps=10, warmup_steps=1), [], folder)  # warms up
        steps = StepTimes()
        _, trainer = train(config, [steps, GradientHeterogeneityMonitor(10)], folder)
        for _ in range(choices.rounds):
            base, _ = train(config, [], folder)
            for limit in choices.limits:
                monitor = LinfSmoothnessMonitor(5, num_probes=4, max_overhead=limit)
                seconds, trainer = train(config, [monitor], folder)
                spent = monitor.state_dict()["seconds"]
                read_out[f"smoothness, limit {limit:g}"].append(spent["probe"] / spent["train"])
                clock[f"smoothness, limit {limit:g}"].append(seconds / base - 1)
    if trainer.is_global_zero:
        heading(trainer.strategy.root_device)
        print(
            f"{choices.steps} steps of {1e3 * base / choices.steps:.0f} ms, "
            f"{choices.devices} x {choices.accelerator}, strategy {choices.strategy}, "
            f"{choices.rounds} rounds"
        )
        share, error = steps.share_of_every(10)
        print(f"heterogeneity, every 10 steps: {share:.4f} +- {error:.4f} of the training\n")
        print(f"{'monitor':32s}{'read out':>10s}{'clock':>10s}{'least':>10s}{'most':>10s}")
        for name, times in clock.items():
            read = f"{statistics.median(read_out[name]):.3f}" if name in read_out else ""
            ends = (statistics.median(times), min(times), max(times))
            print(f"{name:32s}{read:>10s}" + "".join(f"{each:>10.3f}" for each in ends))


if __name__ == "__main__":
    main()
