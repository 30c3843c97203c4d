"""What other packages do beside what we do, in one run: products, eigenvalues, watching, steps.

    OMP_NUM_THREADS=1 python benchmarks/rivals.py --save    # some minutes; once, two to install
    python docs/write_measured.py                           # the tables of docs/compared.md
    python benchmarks/rivals.py --device cuda --save

Each package gets an environment of its own under build/rivals, which sees the packages of this one
(torch among them, which thus is the same for all) and holds the package itself, installed without
its dependencies where those would replace torch. All processes of a part run at once and take
turns, round by round, so that what else the machine does falls on all alike. A package that cannot
be installed, or fails, is said to have.

Products: on a GPT-2, over one float32 gradient of the same batch; the error is that of the product
in the 2-norm, against double backward in float64. Eigenvalues: the largest absolute one of the
Hessian of a small network, whose whole Hessian is known. Watching: a training step of that GPT-2
with a look at its gradient, over one without. Steps: of optimizers, over those of AdamW (fused).
"""

import argparse
import json
import math
import statistics
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from rival_eigenvalues import EIGENVALUES
from rival_processes import Competitors
from rival_products import PRODUCTS
from rival_steps import STEPS
from rival_watching import WATCHING
from stopwatch import RESULTS, commit, heading, place_name

PARTS: dict[str, list[str]] = {  # times are over the first that is timed
    "products": list(PRODUCTS),
    "eigenvalues": list(EIGENVALUES),
    "watching": list(WATCHING),
    "steps": list(STEPS),
}


@dataclass(frozen=True)
class Row:
    """One competitor in one part; what was not measured is None."""

    name: str
    label: str
    median: float | None = None  # seconds
    least: float | None = None
    memory: int | None = None  # bytes, at most at once beyond those before
    value: list[float] | None = None  # of an eigenvalue, or both ends of it
    error: float | None = None  # relative
    failure: str = ""


@dataclass(frozen=True)
class Result:
    """All that the tables of docs/compared.md are made of."""

    versions: str
    place: str
    date: str
    commit: str
    rounds: int
    parts: dict[str, list[Row]]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` has written."""
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: [Row(**row) for row in rows] for part, rows in content.pop("parts").items()}
        return cls(**content, parts=parts)


def result_path(device: str) -> Path:
    """Name the file of a device's result."""
    return RESULTS / f"rivals-{device}.json"


def compare(
    part: str, names: list[str], device: str, size: str, rounds: int, limit: float
) -> list[Row]:
    """Measure the competitors of a part."""
    competitors = Competitors(part, names, device, size, limit)
    try:
        values, errors = judged(part, competitors)
        if "exact" in competitors.running:
            competitors.stop(["exact"])
        times = [competitors.ask("time") for _ in range(rounds)]
        peaks = competitors.ask("memory")
        labels = {name: each.label for name, each in competitors.running.items()}
    finally:
        competitors.stop()
    rows = []
    for name in names:
        failure = competitors.failures.get(name, "")
        seconds = [each[name] for each in times if name in each and not failure]
        rows.append(
            Row(
                name, labels.get(name, name), statistics.median(seconds) if seconds else None,
                min(seconds, default=None), peaks.get(name), values.get(name), errors.get(name),
                failure,
            )
        )  # fmt: skip
    return rows


def judged(part: str, competitors: Competitors) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Give what competitors found, where it is a number, and its error against the exact one."""
    if part == "products":
        return {}, product_errors(competitors)
    if part != "eigenvalues":
        return {}, {}
    found = competitors.ask("value")
    values = {name: each if isinstance(each, list) else [each] for name, each in found.items()}
    if "exact" not in values:
        return values, {}
    (exact,) = values["exact"]
    errors = {name: each[0] / exact - 1 for name, each in values.items() if name != "exact"}
    return values, errors


def product_errors(competitors: Competitors) -> dict[str, float]:
    """Error of each product in the 2-norm, over the norm of the exact one."""
    products: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "product.pt"
        for name in list(competitors.running):
            if name != "gradient" and competitors.ask(f"save {file}", [name]):
                products[name] = torch.load(file).double()
    if "exact" not in products:
        return {}
    reference = products.pop("exact")
    return {
        name: float((product - reference).norm() / reference.norm())
        for name, product in products.items()
    }


def print_rows(rows: list[Row]) -> None:
    """Print a line for each; times over those of the first that has one."""
    base = next((row for row in rows if row.median is not None), None)
    if base is None:
        return
    print(f"{'':30s} ms, median     least   over {base.name:12s}   memory, MiB   error, value")
    for row in rows:
        if row.median is None or row.least is None:
            continue
        error = math.nan if row.error is None else row.error
        value = " to ".join(f"{end:.5g}" for end in row.value or [])
        print(
            f"{row.label:30s} {1e3 * row.median:10.2f} {1e3 * row.least:9.2f} "
            f"{row.median / base.median:12.2f} {(row.memory or 0) / 2**20:21.1f}   "
            f"{error:8.1e} {value}"
        )
    print(flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tiny", action="store_true", help="to see that all works")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for an answer")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    choices = parser.parse_args()
    size = "tiny" if choices.tiny else choices.device
    heading(choices.device)
    parts: dict[str, list[Row]] = {}
    for part in choices.only:
        print(part)
        names = [name for name in PARTS[part] if name not in choices.without]
        parts[part] = compare(part, names, choices.device, size, choices.rounds, choices.limit)
        print_rows(parts[part])
    if choices.save:
        today, path = datetime.now(UTC).date().isoformat(), result_path(choices.device)
        place = place_name(choices.device)
        Result(torch.__version__, place, today, commit(), choices.rounds, parts).save(path)
        print(f"Kept in {path}")


if __name__ == "__main__":
    main()
