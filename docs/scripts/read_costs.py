"""Read what benchmarks of time and memory have printed into `benchmarks/results/`."""

import re

from read_results import text_of


def optimizers() -> dict[str, list[str]]:
    """Give by optimizer the time of its step over fused AdamW's, without and with weight decay."""
    row = re.compile(r"^(.+?) {2,}[\d.]+ +[\d.]+ +([\d.]+) +[\d.]+$", re.MULTILINE)
    ratios: dict[str, list[str]] = {}
    for found in row.finditer(text_of("optimizers.txt")):
        ratios.setdefault(found[1], []).append(found[2])
    return ratios


def measured(what: str) -> float:
    """Give what `all.py` has measured of a line; the first one of this name."""
    row = re.compile(rf"^{re.escape(what)}  .*?([\d.]+)  \w", re.MULTILINE)
    for found in row.finditer(text_of("all-*-cpu.txt")):
        return float(found[1])
    raise ValueError(f"read_results: expected a line {what!r} in all-*-cpu.txt, got none.")


def overhead_of_heterogeneity(name: str) -> tuple[float, float]:
    """Give the share of a training's time that the heterogeneity monitor took, and its error."""
    row = r"^heterogeneity, .*: ([\d.]+) \+- ([\d.]+) of the training$"
    ((share, error),) = re.findall(row, text_of(name), re.MULTILINE)
    return float(share), float(error)


def rotations() -> list[tuple[str, str]]:
    """Give the milliseconds of a rotation, and the same in copies, from few entries to many."""
    row = re.compile(r"^ *[\d,]+ +[\d.]+ +([\d.]+) +([\d.]+) +\d+ +[\d.]+$", re.MULTILINE)
    return [found.group(1, 2) for found in row.finditer(text_of("rotation.txt"))]


def sharded_rotations() -> dict[tuple[int, str], str]:
    """Give by number of ranks and form the most shards that a rank held in a rotated step."""
    row = re.compile(r"^ (\d) +(\w+) +\d+ +[\d.]+ +[\d.]+ +[\d.]+ +([\d.]+)$", re.MULTILINE)
    lines = row.finditer(text_of("sharded_rotation.txt"))
    return {(int(found[1]), found[2]): found[3] for found in lines}


def predicted_memory() -> list[list[str]]:
    """Give the cells of each network: its name, and sizes."""
    lines = text_of("predicted_memory.txt").splitlines()
    return [re.split(r" {2,}", line) for line in lines if line.endswith(" GiB")]


def first_minutes() -> dict[str, int]:
    """Give by command the seconds that it took a newcomer."""
    row = re.compile(r"^(.+?)  (\d+)$", re.MULTILINE)
    return {found[1]: int(found[2]) for found in row.finditer(text_of("first_minutes.txt"))}
