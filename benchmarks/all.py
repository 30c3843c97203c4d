"""Does the suite reach its targets for time and memory? Every line, measured in one run.

    python benchmarks/all.py --quick                     # 6 minutes on two CPU cores
    python benchmarks/all.py --device cuda --quick       # 4 minutes
    python benchmarks/all.py --device cuda --save        # kept in benchmarks/results
    python benchmarks/all.py --only steps vectors

On a GPU the networks are GPT-2 of 124M parameters and GPT-2 XL, on a CPU small ones; each line says
on what it was measured. A ratio is one of medians over rounds in which what is compared takes
turns. A target is "at most". A group that fails, or takes longer than --limit, is said not to have
been measured, and the next one runs.
"""

import argparse
import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import report_lines
import torch
import vector_lines
from stopwatch import heading, kept_in_file
from targets import LINES, Measured, table_head, table_row

Measure = Callable[[Any, torch.device], dict[str, Measured]]
# By name: the sizes that functions take, the functions, and the lines that they give.
GROUPS: dict[str, tuple[dict[str, Any], Measure, list[str]]] = {
    "steps": (vector_lines.SIZES, vector_lines.step_lines, list(vector_lines.STEPS)),
    "rotation": (vector_lines.SIZES, vector_lines.rotation_lines, ["rotation"]),
    "heterogeneity": (vector_lines.SIZES, vector_lines.heterogeneity_lines, ["heterogeneity"]),
    "probe": (vector_lines.SIZES, vector_lines.probe_lines, ["probe", "probe copies"]),
    "control": (vector_lines.SIZES, vector_lines.control_variate_lines, ["control variate"]),
    "product": (report_lines.SIZES, report_lines.product_lines, ["product", "product step"]),
    "report": (
        report_lines.SIZES, report_lines.report_lines, ["report", "report products", "memory"]
    ),
    "vectors": (
        report_lines.SIZES, report_lines.vector_count_lines, ["product vectors", "report vectors"]
    ),
    "share": (report_lines.SIZES, report_lines.share_lines, ["share"]),
    "xl": (report_lines.SIZES, report_lines.xl_lines, ["xl"]),
}  # fmt: skip


class TooLong(Exception):
    """A group has taken longer than its limit."""


def measure_group(name: str, size: str, device: torch.device, limit: float) -> dict[str, Measured]:
    """Measure the lines of a group; each line is there, with a value or with why there is none."""
    sizes, measure, keys = GROUPS[name]
    try:
        with _at_most(limit):
            return measure(sizes[size], device)
    except TooLong:
        return dict.fromkeys(keys, Measured(None, f"took longer than {limit:g} s"))
    except Exception as error:  # whatever it is, the other groups are of use
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return dict.fromkeys(keys, Measured(None, text))
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """Raise ``TooLong`` inside, between two operations, once the seconds are over."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--quick", action="store_true", help="smaller, and fewer rounds")
    parser.add_argument("--tiny", action="store_true", help="to see that all works")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--limit", type=float, help="seconds for a group")
    parser.add_argument("--save", action="store_true", help="keep what is printed in results/")
    choices = parser.parse_args()
    device, size = choices.device, "tiny"
    if not choices.tiny:
        size = device.type + (" quick" if choices.quick else "")
    limit = choices.limit or (90.0 if choices.quick else 900.0)
    with kept_in_file("all", device) if choices.save else contextlib.nullcontext():
        begin = time.perf_counter()
        heading(device)
        print(table_head(), flush=True)
        for name in choices.only:
            measured = measure_group(name, size, device, limit)
            for key in GROUPS[name][2]:
                print(table_row(LINES[key], device.type, measured[key]), flush=True)
        print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
