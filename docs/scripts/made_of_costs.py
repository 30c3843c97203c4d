"""What pages take from results about time and memory, and from the code's own count of vectors."""

import sys
from pathlib import Path

import read_costs as read
from formatting import by_name, table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_linf.probe.memory_by_phase import (  # the line above lets it be found
    Plan,
    ProbeMemory,
)
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.simulation import GraphMemory

_ROTATED = "AdamW, rotated"


def cost_of_partitions() -> str:
    """Write what a step with each partition costs."""
    rows = [(name, *each) for name, each in read.optimizers().items() if name != "one copy"]
    return table(("step of", "without weight decay", "with"), rows)


def cost_of_rotated_steps() -> str:
    """Give a rotated step over fused AdamW's, with weight decay and without."""
    without, decayed = sorted(map(float, read.optimizers()[_ROTATED]))
    return f"{without:.0f} to {decayed:.0f}"


def rotation_in_copies() -> str:
    """Give how many copies of the vector a rotation takes, over all sizes."""
    found = [float(copies) for _, copies in read.rotations()]
    return f"{min(found):.0f} to {max(found):.0f}"


def rotation_of_a_million() -> str:
    """Give the time of a rotation of a million entries, the least of the sizes."""
    return f"{float(read.rotations()[0][0]):.0f} ms"


def sharded_rotation_exchanged() -> str:
    """Give the shards that a rotated step holds where ranks exchange them, by number of ranks."""
    return _by_ranks("exchanged")


def sharded_rotation_gathered() -> str:
    """Give the same where they gather whole vectors."""
    return _by_ranks("gathered")


def product_cost() -> str:
    """Give what a product costs."""
    return f"{read.measured('Hessian-vector product'):.2f}"


def report_products() -> str:
    """Give how many products a report takes."""
    return f"{read.measured('products of a report, coordinate + global'):.0f}"


def report_vectors() -> str:
    """Give how many vectors a report holds at its peak."""
    return f"{read.measured('a report, 4 probes, beyond the start'):g}"


def heterogeneity_cost() -> str:
    """Give the share of a training's time that the heterogeneity monitor took, ± its error."""
    return _percent(*read.overhead_of_heterogeneity("overhead.txt"))


def heterogeneity_cost_of_two() -> str:
    """Give the same of two processes."""
    return _percent(*read.overhead_of_heterogeneity("overhead-two-processes.txt"))


def predicted_memory() -> str:
    """Write what probes of large networks would take."""
    titles = ("", "graph", "product", "vector", "at the peak", 'with `offload="cpu"`')
    return table(titles, read.predicted_memory())


def vectors_by_phase() -> str:
    """Write how many vectors each phase holds, at most in a product and between products."""
    titles = (
        "phase", "k in a product", 'with `offload="cpu"`', "k between products",
        'with `offload="cpu"`',
    )  # fmt: skip
    rows = [
        ["check of the loss", "3", "3", "", ""],
        ["gradient", "1, and the gradient's own", "the same", "", ""],
    ]
    # A product beyond all vectors hides what is between products, which is never less without.
    counts = [_vectors(product, place) for product in (1000, 0) for place in (None, "cpu")]
    rows += [
        [phase, *(f"{count[phase]:.3g}" for count in counts)]
        for phase in ("curvatures", "probes", "operator norm")
    ]
    return table(titles, rows)


def minutes_of_gpt2() -> str:
    """Give the time of a newcomer's first command."""
    return _minutes("make gpt2")


def minutes_of_test() -> str:
    """Give the time of the second."""
    return _minutes("make test")


def _percent(share: float, error: float) -> str:
    return f"{100 * share:.2g} ± {100 * error:.1g} %"


def _minutes(command: str) -> str:
    minutes, seconds = divmod(read.first_minutes()[command], 60)
    return f"{minutes} min {seconds} s"


def _by_ranks(form: str) -> str:
    found = read.sharded_rotations()
    return f"{found[2, form]} with 2 ranks and {found[4, form]} with 4"


def _vectors(product: int, place: str | None) -> dict[str, float]:
    parameters = ParameterVector(nn.Linear(1000, 1000, bias=False))
    vector = 4 * parameters.num_params
    plan = Plan(1, 1, 2, has_halves=False, offload=place, dtype=parameters.dtype)
    graph = GraphMemory(forward=0, build=0, held=0, product=product * vector)
    memory = ProbeMemory.of(graph, parameters, plan)
    return {phase: size / vector - product for phase, size in memory.phases.items()}


PLACES = by_name(
    cost_of_partitions,
    cost_of_rotated_steps,
    rotation_in_copies,
    rotation_of_a_million,
    sharded_rotation_exchanged,
    sharded_rotation_gathered,
    product_cost,
    report_products,
    report_vectors,
    heterogeneity_cost,
    heterogeneity_cost_of_two,
    predicted_memory,
    vectors_by_phase,
    minutes_of_gpt2,
    minutes_of_test,
)
