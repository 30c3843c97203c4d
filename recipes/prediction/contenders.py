"""The optimizers that compete, and the geometry in which each is said to descend."""

from dataclasses import dataclass

from torch import nn

from comparison.ranks import FINEST_FIRST
from lightning_linf import Geometry
from lightning_linf.partition import hidden_matrices


@dataclass(frozen=True)
class Contender:
    """An optimizer, and what is guessed of it.

    Args:
        name: In tables.
        geometry: Which optimizer, on which blocks, in which coordinates. The seed of a run is that
            of its rotation, too.
        reads: The geometry whose measurement is taken as its prediction: a partition, with
            " rotated" for one of rotated coordinates, or "spectral", that of Muon.
        factor: Where the sweep of its rates starts, as a multiple of the task's ``lr``.
    """

    name: str
    geometry: Geometry
    reads: str
    factor: float

    def suits(self, module: nn.Module) -> bool:
        """Whether a network has what the optimizer needs: for Muon, hidden matrices."""
        return self.reads != "spectral" or bool(hidden_matrices(module))


CONTENDERS = (
    Contender("Adam", Geometry("adam"), "coordinate", 1.0),
    Contender("row", Geometry("blockwise_adam", "row"), "row", 1.0),
    Contender("tensor", Geometry("blockwise_adam", "tensor"), "tensor", 1.0),
    Contender("rotated Adam", Geometry("adam", rotation="global"), "coordinate rotated", 1.0),
    Contender("AdaSGD", Geometry("adasgd"), "global", 1.0),
    Contender("SGD", Geometry("sgd"), "global", 20.0),
    Contender("Signum", Geometry("signum"), "coordinate", 0.25),
    Contender("Muon", Geometry("muon"), "spectral", 1.0),
)
FINER_IS_BETTER = tuple(name for name in FINEST_FIRST if name in {c.reads for c in CONTENDERS})
"""The null model, the best first."""


def contender(name: str) -> Contender:
    """Find a contender by its name."""
    return {found.name: found for found in CONTENDERS}[name]
