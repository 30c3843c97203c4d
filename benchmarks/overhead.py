"""How much time do the monitors take, and does `max_overhead` hold?

    python benchmarks/overhead.py                                # one process, about 4 minutes
    python benchmarks/overhead.py --devices 2 --strategy ddp     # two processes
    python benchmarks/overhead.py --accelerator gpu

Trains the GPT-2 of `recipes/gpt2.py` (preset tiny) without monitors, with the gradient's
heterogeneity at every tenth step, and with smoothness under several limits `max_overhead`, due at
every fifth step. "read out" is `probe_overhead` at the end, by the monitor's own clocks; "limit"
what it should be at most. "clock" is the time of the whole training over that of the training
without monitors, less 1, so that it has the noise of both. A probe is made cheap here (4 probes, on
2 sequences), so that there are many.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from stopwatch import heading

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from gpt2 import Config, prepare


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
    rows: list[tuple[str, str, str, str]] = []
    with TemporaryDirectory() as folder:
        train(replace(config, max_steps=10, warmup_steps=1), [], folder)  # warms up
        base, trainer = train(config, [], folder)
        seconds, _ = train(config, [GradientHeterogeneityMonitor(10)], folder)
        rows.append(("heterogeneity, every 10 steps", "", "", f"{seconds / base - 1:8.3f}"))
        for limit in choices.limits:
            monitor = LinfSmoothnessMonitor(5, num_probes=4, max_overhead=limit)
            seconds, trainer = train(config, [monitor], folder)
            spent = monitor.state_dict()["seconds"]
            read = spent["probe"] / spent["train"]
            name = f"smoothness, {len(monitor.history)} probes"
            rows.append((name, f"{limit:8.2f}", f"{read:8.3f}", f"{seconds / base - 1:8.3f}"))
    if trainer.is_global_zero:
        heading(trainer.strategy.root_device)
        print(
            f"{choices.steps} steps of {1e3 * base / choices.steps:.0f} ms, "
            f"{choices.devices} x {choices.accelerator}, strategy {choices.strategy}"
        )
        print(f"{'monitor':32s}{'limit':>8s}{'read out':>10s}{'clock':>10s}")
        for name, limit, read, clock in rows:
            print(f"{name:32s}{limit:>8s}{read:>10s}{clock:>10s}")


if __name__ == "__main__":
    main()
