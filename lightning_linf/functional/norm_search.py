"""The rounds of ascents and certificates by which :func:`operator_norm` narrows its bracket."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.adaptive_smoothness import adaptive_ascent, dual_columns
from lightning_linf.functional.blocks import Blocks
from lightning_linf.functional.certificate import (
    certify,
    floored,
    mixed_shares,
    stationary_shares,
    to_scale,
)
from lightning_linf.functional.offload import bring_back, set_aside
from lightning_linf.functional.random import derive_seed, normal
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.functional.spectrum_end import FAILURE
from lightning_linf.functional.vector_shards import num_entries, sum_over_shards, two_norm

ROUND_HVPS = 32  # products of one round: ascents of Lambda and of N, and a certificate
CERTIFICATE_HVPS = 16  # most of them for the certificate
LEAST_CERTIFICATE = 8  # products without which a certificate would say next to nothing
LEAST_BUDGET = LEAST_CERTIFICATE + 2  # one certificate and two steps of an ascent
RANK = 3  # columns of the ascent of Lambda: the more, the less it misses, and the dearer its steps
LEAST_STEPS = 2  # of that ascent, in the first round
LEAST_ASCENT = 2  # of an ascent of N, from a combination of these columns or an eigenvector
LONE_ASCENT_HVPS = 8  # most of one, by when most of its increase is done
SPREAD = 4.0  # size of random columns beside the one that the ascent of Lambda starts at
GIVEN_WEIGHT = 0.7  # of given shares beside those of the ascent, a quarter of it a round later


class _Best(NamedTuple):
    value: float
    increase: float
    direction: Tensor  # (d,), set aside


class Search:
    """Both ends so far, and what the next round starts from."""

    def __init__(
        self,
        hvp: Callable[[Tensor], Tensor],
        start: Tensor,
        blocks: Blocks,
        given: Tensor,
        max_hvps: int,
        seed: int,
    ) -> None:
        self.hvp, self.blocks, self.seed = hvp, blocks, seed
        self.like = start.new_empty(0)
        self.given: Tensor | None = set_aside(given)
        self.max_hvps = self.left = max_hvps
        self.unused, self.num_rounds = FAILURE, 0
        self.best, self.adaptive = _Best(0.0, 0.0, set_aside(start)), 0.0
        self.upper, self.residual = float("inf"), 0.0
        self.scale = given.new_empty(0)  # S^(-1/2) by block, behind the upper end; set aside
        self.columns: list[Tensor] = []  # where the ascent of Lambda goes on; set aside
        self.rank = min(RANK, blocks.num_blocks)

    def _derive_seed(self, purpose: str) -> int:
        """Give a seed by the products used, so that a larger budget begins as a smaller one did."""
        return derive_seed(purpose, self.seed, self.max_hvps - self.left)

    def best_direction(self) -> Tensor:
        """Give the direction of the lower end of N. Shape: (d,)."""
        return bring_back(self.best.direction, self.like.device)

    def round(self, is_open: bool) -> None:
        """Raise both lower ends and, if the upper end is open to that, lower it."""
        size = self.left if self.left < ROUND_HVPS + LEAST_BUDGET else ROUND_HVPS
        end = self.left - size  # what this round leaves
        direction = self._lower_upper_end(size) if is_open else self._next_direction()
        while self.left - end >= LEAST_ASCENT and self.upper > self.best.value:
            self._ascend(direction, min(self.left - end, LONE_ASCENT_HVPS))
            if not self.num_rounds:
                break
            direction = self._other_direction()
        self.num_rounds += 1

    def _lower_upper_end(self, size: int) -> Tensor:
        """Ascend, and try the weights that this leads to. Gives where N may be larger. (d,)."""
        direction, device = set_aside(self._next_direction()), self.like.device
        seed = self._derive_seed("operator_norm")
        certificate = min(CERTIFICATE_HVPS, max(LEAST_CERTIFICATE, size - LONE_ASCENT_HVPS))
        ascent = size - certificate - 2 * LEAST_ASCENT  # one of N before, one after
        if ascent >= LEAST_STEPS * self.rank:
            products = self._ascend_columns(ascent, seed)
            scale = self._scale(products)
            if self.adaptive and not self.num_rounds:
                direction = set_aside(self._combined(self._weights(products)))
            del products
            self._ascend(bring_back(direction, device), LEAST_ASCENT)
        else:
            budget = min(size - certificate, LONE_ASCENT_HVPS)
            scale = self._scale(self._ascend(bring_back(direction, device), budget))
        del direction
        return self._certify(scale, certificate, seed)

    def _scale(self, products: list[Tensor]) -> Tensor:
        """Turn H times the columns where an ascent has stopped into S^(-1/2), by block. (B,)."""
        stationary = stationary_shares(products, self.blocks)
        if self.given is None:
            return to_scale(floored(stationary, self.blocks), self.blocks)
        # One column leaves Lambda far from reached, so there given shares weigh as much.
        weight = (GIVEN_WEIGHT if len(products) > 1 else 1.0) * 0.25**self.num_rounds
        given = bring_back(self.given, stationary.device)
        return to_scale(mixed_shares(stationary, given, weight, self.blocks), self.blocks)

    def _next_direction(self) -> Tensor:
        """Choose where a round's ascent of N starts. Shape: (d,)."""
        return self._other_direction() if self.num_rounds else self.best_direction()

    def _other_direction(self) -> Tensor:
        """Choose at random where else an ascent of N starts. Shape: (d,)."""
        seed = self._derive_seed("other")
        if self.columns and seed % 2:
            return self._combined(normal(len(self.columns), seed=seed))
        return self._random(seed)

    def _ascend_columns(self, max_hvps: int, seed: int) -> list[Tensor]:
        """Raise the lower end of Lambda. Gives H times the columns before those that are kept."""
        ascent = adaptive_ascent(self.hvp, self._take_columns(seed), self.blocks, max_hvps=max_hvps)
        self.left -= ascent.num_hvps
        self.adaptive = max(self.adaptive, ascent.value)
        products = ascent.products
        del ascent  # with its columns
        self.columns = [set_aside(column) for column in dual_columns(products, self.blocks)]
        return products

    def _take_columns(self, seed: int) -> list[Tensor]:
        """Give the columns that an ascent of Lambda starts at, which are then its own."""
        columns = [bring_back(column, self.like.device) for column in self.columns]
        self.columns = []
        return columns or self._spread(seed)

    def _weights(self, products: list[Tensor]) -> Tensor:
        """Weigh the columns V so that most of ``<V, H U>`` is kept; ``products`` are H U. (r,)."""
        parts = []
        for kept in self.columns:
            column = bring_back(kept, self.like.device)
            parts.append(torch.stack([torch.dot(column, product) for product in products]))
        value = sum_over_shards(torch.stack(parts))  # symmetric but for rounding
        vectors: Tensor = torch.linalg.eigh(value.to("cpu", torch.float64)).eigenvectors
        return vectors[:, -1]

    def _combined(self, weights: Tensor) -> Tensor:
        """Add up the columns with weights (r,). Shape: (d,)."""
        result = torch.zeros_like(self.columns[0], device=self.like.device)
        for column, weight in zip(self.columns, weights.tolist(), strict=True):
            result.add_(bring_back(column, result.device), alpha=weight)
        return result

    def _spread(self, seed: int) -> list[Tensor]:
        """Take random vectors beside the best direction as columns to start from."""
        direction = self.best_direction()
        size = SPREAD * two_norm(direction) / num_entries(direction) ** 0.5
        seeds = [derive_seed("columns", seed, k) for k in range(1, self.rank)]
        return [direction, *(self._random(one).mul_(size) for one in seeds)]

    def _random(self, seed: int) -> Tensor:
        return normal_vector(self.blocks.num_params, seed=seed, like=self.like)

    def _ascend(self, direction: Tensor, max_hvps: int) -> list[Tensor]:
        """Raise the lower end of N. Gives H times the direction where the ascent has stopped."""
        ascent = adaptive_ascent(self.hvp, [direction], self.blocks, max_hvps=max_hvps)
        self.left -= ascent.num_hvps
        self.adaptive = max(self.adaptive, ascent.value)
        if ascent.value > self.best.value:
            gain = (ascent.value - self.best.value) / ascent.value
            self.best = _Best(
                ascent.value, min(gain, ascent.increase), set_aside(ascent.columns[0])
            )
        return ascent.products

    def _certify(self, scale: Tensor, max_hvps: int, seed: int) -> Tensor:
        """Try the weights of which ``scale`` is S^(-1/2), by block. Gives its eigenvector. (d,)."""
        if self.left - max_hvps < LEAST_BUDGET:
            self.columns, self.given = [], None  # no other round is planned that would need them
        failure = self.unused / 2  # those of any number of certificates add up to FAILURE
        krylov = certify(
            self.hvp, self.blocks.expand(scale), max_hvps=max_hvps, failure=failure, seed=seed
        )
        self.left, self.unused = self.left - krylov.num_hvps, self.unused - failure
        if krylov.upper < self.upper:
            self.upper, self.scale = krylov.upper, set_aside(scale)
            self.residual = (krylov.upper - krylov.value) / krylov.value if krylov.value else 0.0
        # In it the weights fall shortest of H, so there an ascent has not been.
        return krylov.ritz_vector(krylov.extreme).div_(self.blocks.expand(scale))
