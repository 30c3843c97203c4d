"""Read what benchmarks have printed into `benchmarks/results/`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
_NUMBER = r"(nan|inf|[\d.]+(?:e[+-]?\d+)?)"


def text_of(name: str) -> str:
    """Give the text of a result; of several with a date the latest."""
    found = sorted(RESULTS.glob(name))
    if not found:
        raise FileNotFoundError(f"read_results: expected a file {name} in {RESULTS}, got none.")
    return found[-1].read_text(encoding="utf-8")


class Bracket(NamedTuple):
    """A line of `brackets.txt`."""

    partition: str
    blocks: str
    lower: str
    upper: str
    bound: str  # of H, or ""


def brackets() -> tuple[list[int], list[Bracket]]:
    """Give the budgets, and for each partition a line for each of them."""
    text = text_of("brackets.txt")
    asked = re.search(r"--hvps((?: \d+)+)", text)
    if asked is None:
        raise ValueError("read_results: expected the command with --hvps in brackets.txt.")
    row = re.compile(
        rf"^(\w+) +([\d,]+) +\d+ +{_NUMBER} +{_NUMBER} +{_NUMBER} *(?:{_NUMBER} +{_NUMBER})? *$",
        re.MULTILINE,
    )
    lines = [Bracket(*found.group(1, 2, 3, 4), found[6] or "") for found in row.finditer(text)]
    return [int(budget) for budget in asked[1].split()], lines


class Adaptive(NamedTuple):
    """A line of `adaptive_smoothness.txt`: ends over the adaptive smoothness."""

    network: str
    num_params: str
    partition: str
    budget: int
    lower_norm: float
    lower: float
    upper: float
    ratio: float
    most: float


def adaptive_smoothness() -> list[Adaptive]:
    """Give all lines, in their order."""
    row = re.compile(
        rf"(\w+) +(\d+) +{_NUMBER} +[\d.]+% +{_NUMBER} +{_NUMBER} +{_NUMBER} +{_NUMBER} +{_NUMBER}"
    )
    lines, network, num_params = [], "", ""
    for line in text_of("adaptive_smoothness.txt").splitlines():
        if found := re.match(r"(\w+): ([\d,]+) parameters", line):
            network, num_params = found.groups()
        elif found := row.fullmatch(line.strip()):
            numbers = [float(number) for number in found.groups()[3:]]
            lines.append(Adaptive(network, num_params, found[1], int(found[2]), *numbers))
    return lines


class Advantage(NamedTuple):
    """A line of `advantage.txt`: three measures of an advantage over "global"."""

    step: int
    loss: str
    partition: str
    at_worst: str
    along: float
    observed: float


class Pairs(NamedTuple):
    """How many pairs of partitions a measure has ordered as they were observed."""

    step: int
    alike: int
    total: int


def advantages() -> list[Advantage]:
    """Give all lines, in their order."""
    row = re.compile(
        rf"^ *(\d+) +([\d.]+) +(\w+) +({_NUMBER}(?: to {_NUMBER})?) +{_NUMBER} +{_NUMBER} *$",
        re.MULTILINE,
    )
    return [
        Advantage(int(f[1]), f[2], f[3], f[4].replace(" to ", " – "), float(f[7]), float(f[8]))
        for f in row.finditer(text_of("advantage.txt"))
    ]


def pairs(kind: str) -> list[Pairs]:
    """Give the counts of each step; the kind ends the line."""
    row = re.compile(
        rf"^ *(\d+) pairs ordered as predicted {re.escape(kind)}: (\d+) of (\d+)$", re.MULTILINE
    )
    return [Pairs(*map(int, found.groups())) for found in row.finditer(text_of("advantage.txt"))]


def without_earlier(text: str) -> str:
    """Leave out what a result holds of an earlier commit beside its own."""
    return text.split("\n# the same of commit")[0]


class Exact(NamedTuple):
    """A line of `brackets_exact.txt`: ends over the best value known."""

    case: str
    likeness: int  # as if of so many times as many parameters
    partition: str
    budget: int
    lower: str
    least: str
    upper: str
    most: str


def brackets_exact() -> list[Exact]:
    """Give the lines of networks."""
    row = re.compile(
        rf" *(\w+) +of +(\d+) products +{_NUMBER} lower {_NUMBER} \(least {_NUMBER}\) +"
        rf"upper {_NUMBER} \(most {_NUMBER}\)"
    )
    lines, case, likeness = [], "", 0
    for line in without_earlier(text_of("brackets_exact.txt")).splitlines():
        if found := re.match(r"(.+), as if of (\d+) times as many parameters", line):
            case, likeness = found[1], int(found[2])
        elif found := row.fullmatch(line.rstrip()):
            lines.append(Exact(case, likeness, found[1], int(found[2]), *found.group(4, 5, 6, 7)))
    return lines


def spectra() -> list[tuple[str, str, str, str]]:
    """Give name, products, seeds that were below the truth, and all seeds, of each spectrum."""
    row = re.compile(r"^(\S.*?) {2,}([\d.]+) +(\d+) of +(\d+) +[\d.]+$", re.MULTILINE)
    text = without_earlier(text_of("brackets_exact.txt"))
    return [found.group(1, 2, 3, 4) for found in row.finditer(text)]


class Errors(NamedTuple):
    """A line of `one_one_norm.txt`: relative errors over sets of probes."""

    case: str
    probes: int
    bias: str
    rmse: str
    stated: str
    covered: float  # %
    plain: str
    full: str
    median: str
    over_best: float


def one_one_norm() -> list[Errors]:
    """Give all lines, in their order."""
    row = re.compile(
        r" *(\d+) +([+-][\d.]+) +([\d.]+) +([\d.]+) +[\d.]+ +([\d.]+)% +([\d.]+) +([\d.]+) +"
        r"([\d.]+) +([\d.]+)"
    )
    lines, case = [], ""
    for line in text_of("one_one_norm.txt").splitlines():
        if found := re.match(r"(.+): relative errors over", line):
            case = found[1]
        elif found := row.fullmatch(line):
            probes, bias, rmse, stated, covered, plain, full, median, over = found.groups()
            lines.append(
                Errors(
                    case, int(probes), bias, rmse, stated, float(covered), plain, full, median,
                    float(over),
                )
            )  # fmt: skip
    return lines


def bounds_of_blocks() -> Iterator[tuple[str, ...]]:
    """Give case, partition, bias, rmse and stated error, and the plain mean's bias and rmse."""
    row = re.compile(
        r"bound by (\w+) at 16 probes: bias (\S+), rmse (\S+), stated (\S+); plain mean: "
        r"bias (\S+), rmse (\S+)"
    )
    case = ""
    for line in text_of("one_one_norm.txt").splitlines():
        if found := re.match(r"(.+): relative errors over", line):
            case = found[1]
        elif found := row.fullmatch(line):
            yield (case, *found.groups())


def errors_of_groups() -> dict[int, list[float]]:
    """Give by group size the RMSE of each network over that of its line without groups."""
    row = re.compile(r"^ +\d+ groups of +(\d+): bias \S+ rmse (\S+)", re.MULTILINE)
    ratios: dict[int, list[float]] = {}
    alone = 0.0
    for found in row.finditer(text_of("one_one_norm_groups.txt")):
        size, rmse = int(found[1]), float(found[2])
        alone = rmse if size == 1 else alone
        ratios.setdefault(size, []).append(rmse / alone)
    return ratios


def numbers_of_groups(size: int) -> list[int]:
    """Give how many groups of a size each network was divided into."""
    row = re.compile(rf"^ +(\d+) groups of +{size}: ", re.MULTILINE)
    return [int(found) for found in row.findall(text_of("one_one_norm_groups.txt"))]


def largest_differences() -> dict[str, float]:
    """Give by quantity the largest difference that TF32 made over all networks, in %."""
    _, table = text_of("matmul_precision.txt").split("Largest difference over all networks")
    return {
        found[1]: float(found[2])
        for found in re.finditer(r"^(.+?) {2,}(\S+) %$", table, re.MULTILINE)
    }


def reports() -> dict[str, dict[str, float]]:
    """Give by network the quantities of its report, in full precision."""
    networks: dict[str, dict[str, float]] = {}
    values: dict[str, float] = {}
    for line in text_of("matmul_precision.txt").split("Largest difference")[0].splitlines():
        if found := re.match(r"(\w+), ([\d,]+) parameters", line):
            values = networks[found[1]] = {"d": float(found[2].replace(",", ""))}
        elif found := re.match(r"(\S.*?) {2,}(\S+) +\S+ +\S+ %", line):
            values[found[1]] = float(found[2])
    return networks


class Edge(NamedTuple):
    """A run of `edge.txt`: its edge over the last third, and its last loss."""

    reached: str  # the step, or "never"
    mean: float
    most: float
    loss: float


def edges() -> list[Edge]:
    """Give all runs, in their order."""
    row = re.compile(
        rf"^\S.*? +[\d.]+ +(never|\d+) +([\d.]+) \([\d.]+ to ([\d.]+)\) +{_NUMBER}$", re.MULTILINE
    )
    return [
        Edge(found[1], *map(float, found.group(2, 3, 4)))
        for found in row.finditer(text_of("edge.txt"))
    ]


def stable_rates() -> list[tuple[int, float]]:
    """Give a step, and the largest stable rate measured there over the one found by trying."""
    row = re.compile(r"^\S.*? +(\d+) +[\d.]+ +[\d.]+ +([\d.]+) +[\d.]+$", re.MULTILINE)
    return [(int(found[1]), float(found[2])) for found in row.finditer(text_of("edge.txt"))]
