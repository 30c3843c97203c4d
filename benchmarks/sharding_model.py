"""A model of what a probe takes of each rank's memory and sends, fitted and extrapolated."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from sharding_ranks import Case, Found

BYTES = 4  # of a number: probes are in float32


class Fit(NamedTuple):
    """Resident bytes = 4 (whole d + sharded d / W + gathered m) + graph x rows x width x layers.

    m is the number of parameters of the largest module that is gathered at a time.
    """

    whole: float  # vectors of d numbers that every rank holds
    sharded: float  # vectors of which a rank holds a W-th
    gathered: float  # copies of the largest module
    graph: float  # bytes of the graph for each activation
    residual: float  # largest error of a case, as a share of it
    sent: float  # bytes in a product, over 4 d (W - 1) / W
    entering: float  # the same before the first evaluation


def fit(cases: Sequence[Case], found: Sequence[Found]) -> Fit:
    """Fit by least squares of relative errors, with no part below zero."""
    rows = torch.tensor([_parts(case) for case in cases], dtype=torch.float64)
    resident = torch.tensor([each.resident for each in found], dtype=torch.float64)
    scaled = rows / resident[:, None]
    factors = _nonnegative(scaled)
    residual = float((scaled @ factors - 1).abs().max())
    shares = [BYTES * case.num_params * (case.num_ranks - 1) / case.num_ranks for case in cases]
    several = [(each, share) for each, share in zip(found, shares, strict=True) if share > 0]
    return Fit(
        *factors.tolist(),
        residual,
        _mean([each.product / share for each, share in several]),
        _mean([each.entering / share for each, share in several]),
    )


def _parts(case: Case) -> list[float]:
    d = BYTES * case.num_params
    activations = case.rows * case.width * case.num_layers
    return [d, d / case.num_ranks, BYTES * case.largest, activations]


def _nonnegative(scaled: torch.Tensor) -> torch.Tensor:
    """Solve ``scaled @ x = 1`` for x >= 0: the best of all choices of parts that are zero."""
    num_parts = scaled.shape[1]
    best, least = torch.zeros(num_parts, dtype=scaled.dtype), math.inf
    for chosen in range(1, 2**num_parts):
        columns = [part for part in range(num_parts) if chosen >> part & 1]
        target = torch.ones(len(scaled), 1, dtype=scaled.dtype)
        solution = torch.linalg.lstsq(scaled[:, columns], target, driver="gelsd").solution
        error = float((scaled[:, columns] @ solution - target).square().sum())
        if (solution >= 0).all() and error < least:
            least = error
            best = torch.zeros_like(best)
            best[columns] = solution[:, 0]
    return best


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Model(NamedTuple):
    """A network of the size that people train, with GPUs to train it on."""

    name: str
    num_gpus: int
    layers: int
    width: int
    hidden: int  # of the feed-forward part
    key_width: int  # of keys and of values: fewer heads than of queries
    vocabulary: int

    @property
    def block(self) -> int:
        """Number of parameters of one block: attention, and a gated feed-forward part."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_width
        return attention + 3 * self.width * self.hidden

    @property
    def num_params(self) -> int:
        """Number of all parameters, with an embedding and an output layer of their own."""
        return self.layers * self.block + 2 * self.vocabulary * self.width

    @property
    def largest(self) -> int:
        """Number of parameters of the largest module that is gathered at a time."""
        return max(self.block, self.vocabulary * self.width)


MODELS = (
    Model("7B", 8, 32, 4096, 11_008, 4096, 32_000),
    Model("70B", 64, 80, 8192, 28_672, 1024, 128_256),
    Model("405B", 512, 126, 16_384, 53_248, 1024, 128_256),
)
STATE_BYTES = 16  # of a parameter in training: itself, its gradient and two moments in float32


class Extrapolation(NamedTuple):
    """What the fit says of a model; bytes on each GPU."""

    state: float  # of training
    probe: float  # without the graph
    graph_per_token: float
    num_tokens: int  # the most that fit beside the rest; 0: not even the rest does
    sent_in_product: float


def extrapolate(
    model: Model, fitted: Fit, graph_per_token: float, gpu_bytes: float
) -> Extrapolation:
    """Say what a probe takes of each GPU of a model, and how many tokens it may see there."""
    d, ranks = BYTES * model.num_params, model.num_gpus
    state = STATE_BYTES * model.num_params / ranks
    vectors = fitted.whole * d + fitted.sharded * d / ranks
    probe = vectors + fitted.gathered * BYTES * model.largest
    free = gpu_bytes - state - probe
    return Extrapolation(
        state,
        probe,
        graph_per_token,
        max(0, int(free / graph_per_token)),
        fitted.sent * d * (ranks - 1) / ranks,
    )
