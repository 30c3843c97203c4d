"""How long do server and page take for many layers, steps and runs, and how much memory?

    python benchmarks/panels.py                     # 100 layers, 10,000 steps: two minutes, 0.2 GB
    python benchmarks/panels.py --layers 148 --steps 1000 --runs 20
    python benchmarks/panels.py --layers 148 --steps 10 --runs 1000

Writes one run as the monitors would that measure at every step, copies it, has TensorBoard read all
of them, with either reader, and looks at them with Chromium. Server times are medians over
requests, page times are of one loading.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stopwatch import heading
from torch.utils.tensorboard import SummaryWriter

from lightning_linf import quantities
from lightning_linf.record import Record
from lightning_linf.tensorboard.writer import write_record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # whose browser and TensorBoard it is

from support.chromium import READY, Page, chromium  # found there
from support.tensorboard_process import TensorBoard, tensorboard

TAG = quantities.HETEROGENEITY.record_tag
QUANTITIES = ("density", "gini", "top1_energy", "zero_fraction")
NUM_REQUESTS = 5
# Run before anything else in the page: the longest time for which it answered nothing.
WATCH = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
}).observe({ type: "longtask", buffered: true });
"""


def write_run(folder: Path, num_layers: int, num_steps: int) -> None:
    """Write event files with the tags of all monitors, of random walks."""
    generator = np.random.default_rng(0)
    names = [f"transformer.h.{i // 4}.mlp.{i % 4}.weight" for i in range(num_layers)]
    partitions = ("coordinate", "row", "tensor")
    curves = [
        *(quantities.LAMBDA_MAX.tag, quantities.ONE_ONE_NORM_PER_PARAM.tag),
        *(quantities.ADVANTAGE_LOWER.of(name) for name in partitions),
        *(quantities.ADVANTAGE_UPPER.of(name) for name in partitions),
        *(quantities.OPERATOR_NORM_LOWER.of(name) for name in partitions),
        *(quantities.OPERATOR_NORM_UPPER.of(name) for name in partitions),
        *(quantities.SMOOTHNESS_UPPER.of(name) for name in partitions[1:]),
    ]
    writer = SummaryWriter(str(folder))
    level = generator.random((num_layers + 1, 1))
    for step in range(num_steps):
        level = np.clip(level + 0.01 * generator.standard_normal(level.shape), 0.01, 1.0)
        fans = np.sort(generator.standard_normal((num_layers + 1, 7)) - 4 * level, axis=1)
        table = {name: level[:, 0] ** (i + 1) for i, name in enumerate(QUANTITIES)}
        columns = {name: values[:-1].tolist() for name, values in table.items()}
        whole = {name: float(values[-1]) for name, values in table.items()}
        columns["log10_quantiles"], whole["log10_quantiles"] = fans[:-1].tolist(), fans[-1].tolist()
        write_record(writer, Record(step, TAG, {}, names, columns, whole))
        for number, tag in enumerate(curves):
            writer.add_scalar(tag, float(level[number % len(level), 0]) * (1 + number), step)
        writer.add_scalar("train_loss", float(level[0, 0]), step)
    writer.close()


def median_ms(action: Callable[[], object]) -> float:
    """Time an action several times."""
    seconds = []
    for _ in range(NUM_REQUESTS):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def memory_mb(process: int) -> float:
    """Give the memory of a process and of those that it has started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    status = Path(f"/proc/{process}/status").read_text()
    own = int(status.partition("VmRSS:")[2].split()[0]) / 1e3
    return own + sum(memory_mb(int(child)) for child in children)


def measure_server(board: TensorBoard, started: float, last_step: int, num_runs: int) -> None:
    """Print how long it takes to read all, and to answer."""
    table = {"run": f"run{num_runs - 1}", "tag": TAG}
    while len(board.get("runs")[1]["runs"]) < num_runs:  # it reads while it already answers
        time.sleep(0.1)
    while True:
        begin = time.perf_counter()
        status, layers = board.get("layers", **table, column="density")
        cold = time.perf_counter() - begin
        if status == 200 and layers["steps"][-1] == last_step:
            break
        time.sleep(0.2)
    print(f"  all events read {time.perf_counter() - started:.1f} s after the start")
    shown = f"{len(layers['steps'])} of {layers['num_steps']:,} steps"
    print(f"  layers, first request {1e3 * cold:.0f} ms ({shown})")
    answers = {
        "layers again": lambda: board.get("layers", **table, column="gini"),
        "fan": lambda: board.get("fan", **table, column="log10_quantiles", row=0),
        "scalars": lambda: board.get("scalars", run=table["run"]),
        "runs": lambda: board.get("runs"),
    }
    for name, action in answers.items():
        print(f"  {name} {median_ms(action):.0f} ms")
    print(f"  memory of TensorBoard {memory_mb(board.process):.0f} MB")


def measure_page(board: TensorBoard, page: Page, num_runs: int) -> None:
    """Print how long the page takes to draw, and to answer its controls."""
    page.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    page.size(1280)
    begin = time.perf_counter()
    page.open(board.entry)
    page.wait(READY)
    browser = page.send("Browser.getVersion")["product"]
    print(f"  page drawn by {browser} after {time.perf_counter() - begin:.2f} s", end="")
    print(f", longest time without an answer {page.run('window.longest'):.0f} ms")
    slide = """(() => {
        const slider = document.querySelector("#bars input[type=range]");
        const begin = performance.now();
        for (let i = 0; i < 20; i++) {
            slider.value = String(i * 20);
            slider.dispatchEvent(new Event("input"));
        }
        return (performance.now() - begin) / 20;
    })()"""
    print(f"  a move of the step slider {page.run(slide):.1f} ms")
    page.run("window.longest = 0")
    page.run("document.querySelector('.shared button').click()")  # log scale
    page.run("new Promise((done) => setTimeout(done, 500))")
    page.wait(READY)
    print(f"  drawing the map anew blocks for {page.run('window.longest'):.0f} ms (0: under 50)")
    if num_runs > 1:
        page.run("window.longest = 0")
        begin = time.perf_counter()
        page.run("document.querySelector('.picker button').click()")  # All: it is busy at once
        page.wait(READY)
        print(f"  all {num_runs} runs drawn after {time.perf_counter() - begin:.2f} s", end="")
        print(f", longest time without an answer {page.run('window.longest'):.0f} ms")
    page.send("HeapProfiler.collectGarbage")
    heap = page.send("Runtime.getHeapUsage")["usedSize"]
    print(f"  memory of the page's JavaScript {heap / 1e6:.0f} MB")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1)
    choices = parser.parse_args()
    heading()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = folder / "runs" / "run0"
        write_run(first, choices.layers, choices.steps)
        for number in range(1, choices.runs):
            shutil.copytree(first, folder / "runs" / f"run{number}")
        size = choices.runs * sum(file.stat().st_size for file in first.iterdir())
        print(f"{choices.runs:,} runs, {choices.layers} layers, {choices.steps:,} steps:", end=" ")
        print(f"{size / 1e6:.0f} MB of events")
        for load_fast in ("true", "false"):
            print(f"--load_fast={load_fast}")
            started = time.perf_counter()
            log = folder / "tensorboard.txt"
            with (
                tensorboard(folder / "runs", log, load_fast=load_fast) as board,
                chromium(folder) as page,
            ):
                measure_server(board, started, choices.steps, choices.runs)
                measure_page(board, page, choices.runs)


if __name__ == "__main__":
    main()
