"""What a probe takes of a device's memory: the graph of a gradient, and k vectors by phase."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from lightning_linf.functional.lambda_max import NUM_KEPT, basis_dtype
from lightning_linf.functional.offload import Offload
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.simulation import GraphMemory


class Plan(NamedTuple):
    """What decides how many vectors a measurement holds at once."""

    num_batches: int  # the graph of one is kept between products, of several none is
    probes_per_pass: int
    num_partitions: int
    has_halves: bool  # of the batches, whose products are kept apart
    offload: Offload | None
    dtype: torch.dtype


class _Vectors(NamedTuple):
    """How many vectors of d numbers a phase holds beside graph and copied parameters."""

    products: float  # at most while a product runs, with the vectors and their products
    between: float  # at most between products


def _curvatures(plan: Plan) -> _Vectors:
    each = min(plan.probes_per_pass, plan.num_partitions)
    return _Vectors(1 + 2 * each, 1 + 2 * each)  # gradient, directions, products


def _probes(plan: Plan) -> _Vectors:
    # The next start, two sums of logarithms, two for each half, and the first product until it has
    # been compared with the second one. All of them can be offloaded.
    each = plan.probes_per_pass
    aside = 0 if plan.offload else 3 + 2 * plan.has_halves + (each == 1)
    # A probe is drawn again to compare; with blocks of several entries that takes three vectors.
    rows, drawn = 2 * each if plan.has_halves else each, 3.1
    mean = each if plan.has_halves else 0
    return _Vectors(aside + each + rows, aside + max(2 * each + drawn, each + rows + mean))


def _operator_norm(plan: Plan) -> _Vectors:
    # Of a certificate the scale, and of Lanczos iteration the present vector, that one scaled, and
    # the product. Offloaded: the previous vector, the best direction and the basis. Between
    # products, weights that are made of three of them take most.
    basis = NUM_KEPT * basis_dtype(plan.dtype).itemsize / plan.dtype.itemsize
    return _Vectors(4, 7.3) if plan.offload else _Vectors(6 + basis, 6.1 + basis)


# tests/probe/test_vector_counts.py compares what comes of these with what is counted.
_PHASES = {"curvatures": _curvatures, "probes": _probes, "operator norm": _operator_norm}


@dataclass(frozen=True)
class ProbeMemory:
    """What a probe will take, in bytes on the device of the parameters; ``print`` shows it.

    Attributes:
        num_params: Number d of parameters.
        vector: Of one vector of d numbers, or of the largest of its shards.
        graph: Of the gradient on the batch that takes most, with the probe's copy of parameters and
            buffers.
        product: At most beside it during a product, without the vector and its product.
        phases: By phase, at most in all, with the graph. The phases follow each other.
    """

    num_params: int
    vector: int
    graph: int
    product: int
    phases: dict[str, int]

    @classmethod
    def of(cls, graph: GraphMemory, vector: ParameterVector, plan: Plan) -> Self:
        """Add up the graph of the batch that takes most, and the vectors of each phase."""
        size = vector.most_local * vector.dtype.itemsize
        return cls(vector.num_params, size, graph.held, graph.product, _by_phase(graph, size, plan))

    @property
    def peak(self) -> int:
        """At most in the whole probe."""
        return max(self.phases.values())

    def __str__(self) -> str:
        lines = [f"A probe takes at most {shown_bytes(self.peak)}: {self.parts}."]
        for name, size in self.phases.items():
            beside = (size - self.graph) / self.vector
            lines.append(f"{name:>15} {shown_bytes(size):>10} = graph + {beside:.1f} vectors")
        return "\n".join(lines)

    @property
    def parts(self) -> str:
        """What it is made up of, in words."""
        return (
            f"the graph of the gradient {shown_bytes(self.graph)}, a product beside it "
            f"{shown_bytes(self.product)}, each vector of {self.num_params:,} numbers "
            f"{shown_bytes(self.vector)}"
        )


def _by_phase(graph: GraphMemory, vector: int, plan: Plan) -> dict[str, int]:
    product = graph.held + graph.product
    totals: dict[str, float] = {
        # Origin, direction, product; later also a change of the gradient, and where it is taken.
        "loss check": max(product + 3 * vector, graph.forward + 5 * vector),
        "gradient": graph.build + vector,
    }
    if plan.num_batches > 1:
        # Four sums, one of them of half the batches, and the gradient that is added to them.
        totals["noise"] = max(graph.build + 4 * vector, graph.forward + 5 * vector)
    during = product if plan.num_batches == 1 else max(product, graph.build)
    idle = graph.held if plan.num_batches == 1 else vector  # the copied parameters stay
    for name, count in _PHASES.items():
        held = count(plan)
        totals[name] = max(during + held.products * vector, idle + held.between * vector)
    return {name: int(total) for name, total in totals.items()}


def shown_bytes(num_bytes: int) -> str:
    """Write a number of bytes with a unit."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if num_bytes >= 2**power:
            return f"{num_bytes / 2**power:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"
