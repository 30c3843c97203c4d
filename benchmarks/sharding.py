"""What does a probe take of each rank's memory, and what does it send, on W ranks?

    OMP_NUM_THREADS=1 python benchmarks/sharding.py --quick           # minutes, d = 2e6
    OMP_NUM_THREADS=1 python benchmarks/sharding.py --save            # d = 2e7; then:
    python docs/scripts/write_scaling.py                              # the page of it

A report of coordinate and global, of a network that `fully_shard` has divided layer by layer among
processes of this machine, joined by gloo; each has a batch of its own. Memory is the most that was
resident in a process at once, by Linux, beyond what was before the probe. Traffic is the size of
all collectives, times what a rank sends of it. A model is fitted to that and extrapolated to
networks and GPUs that are not here, with the graph of their tokens computed on tensors without
values.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from sharding_graph import graph_per_token
from sharding_model import BYTES, MODELS, fit
from sharding_ranks import Case, Found, measure
from stopwatch import RESULTS, commit, heading

RESULT = RESULTS / "sharding.json"


def cases_of(num_params: float, num_ranks: Sequence[int], num_layers: int, rows: int) -> list[Case]:
    """List the cases: W is varied, and on most ranks the batch and the largest module, too."""

    def case(ranks: int, layers: int, rows: int) -> Case:
        return Case(ranks, layers, round((num_params / layers) ** 0.5), rows, 4, None)

    most = max(num_ranks)
    return [
        *(case(ranks, num_layers, rows) for ranks in num_ranks),
        case(most, num_layers // 4, rows),
        case(most, num_layers, 16 * rows),
    ]


SIZES = {
    "tiny": cases_of(4e3, (1, 2), 4, 4),
    "quick": cases_of(2e6, (1, 2, 4), 8, 16),
    "full": cases_of(2e7, (1, 2, 4), 8, 16),
}


@dataclass(frozen=True)
class Result:
    """All that the page is made of."""

    versions: str
    date: str
    commit: str
    cases: list[Case]
    found: list[Found]
    graphs_per_token: list[float]  # of each of MODELS, bytes

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` has written."""
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["cases"] = [Case(*case) for case in content["cases"]]
        content["found"] = [Found(*found) for found in content["found"]]
        return cls(**content)


def measure_all(cases: Sequence[Case]) -> list[Found]:
    """Measure and print case by case."""
    print(f"{'W':>3}{'d':>13}{'layers':>8}{'rows':>6}{'MiB':>10}{'vectors':>9}"
          f"{'sent a product, vectors':>25}{'entering':>10}{'products':>10}{'s':>8}")  # fmt: skip
    found = []
    for case in cases:
        each = measure(case)
        found.append(each)
        vector = BYTES * case.num_params
        print(
            f"{case.num_ranks:3d}{case.num_params:13,d}{case.num_layers:8d}{case.rows:6d}"
            f"{each.resident / 2**20:10.1f}{each.resident / vector:9.2f}"
            f"{each.product / vector:25.3f}{each.entering / vector:10.3f}{each.num_hvps:10d}"
            f"{each.seconds:8.1f}",
            flush=True,
        )
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="d = 2e6 in place of 2e7")
    parser.add_argument("--tiny", action="store_true", help="to see that all works")
    parser.add_argument("--save", action="store_true", help=f"keep the result in {RESULT.name}")
    choices = parser.parse_args()
    heading()
    cases = SIZES["tiny" if choices.tiny else "quick" if choices.quick else "full"]
    found = measure_all(cases)
    fitted = fit(cases, found)
    print("\n" + ", ".join(f"{name} {value:.3g}" for name, value in fitted._asdict().items()))
    graphs = [] if choices.tiny else [graph_per_token(model) for model in MODELS]
    for model, graph in zip(MODELS, graphs, strict=False):
        print(f"graph of a token, {model.name}: {graph / 2**20:.1f} MiB")
    if choices.save:
        today = datetime.now(UTC).date().isoformat()
        Result(torch.__version__, today, commit(), cases, found, graphs).save(RESULT)
        print(f"Kept in {RESULT}")


if __name__ == "__main__":
    main()
