"""A random permutation of the parameters."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_linf.argument_checks import check_choice
from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.random import chunks, derive_seed
from lightning_linf.functional.sharded_permutation import ShardedPermutation, images_of_parts
from lightning_linf.reparam.bound import BoundReparameterization
from lightning_linf.reparam.cache import TensorCache
from lightning_linf.reparam.reparameterization import Reparameterization, check_pattern

PermutationScope = Literal["global", "tensor"]


@dataclass(frozen=True)
class Permutation(Reparameterization):
    """Permute the coordinates at random: theta_i = phi_p(i).

    Training with SGD or Adam is unchanged by it. An optimizer with blocks, such as blockwise Adam
    with one second moment per row, is not: its blocks are then random sets of parameters.

    Args:
        scope: "global" permutes all tensors as one vector, "tensor" the entries of each tensor.
        seed: Seed of the permutation, which is the same on every device.
        only: A regular expression, searched in the names of the parameters; those without a match
            keep their coordinates.

    Raises:
        ValueError: If an argument has a wrong value.

    Example:
        >>> bound = Permutation(seed=0).bind([torch.Size([2, 2]), torch.Size([3])])
        >>> x = torch.arange(7)
        >>> y = bound.apply(x.float())
        >>> sorted(y.tolist()) == x.tolist(), torch.equal(bound.apply_transpose(y), x.float())
        (True, True)
    """

    scope: PermutationScope = "global"
    _: KW_ONLY
    seed: int = 0
    only: str | None = None

    def __post_init__(self) -> None:
        check_choice("Permutation", "scope", self.scope, get_args(PermutationScope))
        check_pattern(self.only, "Permutation")

    @property
    def mixes_tensors(self) -> bool:
        """Whether an entry of phi may belong to another tensor than that of theta."""
        return self.scope == "global"

    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        sizes = tuple(math.prod(shape) for shape in shapes)
        if self.scope == "global":
            sizes = (sum(sizes),)
        seeds = tuple(derive_seed("permutation", self.seed, stream, i) for i in range(len(sizes)))
        return BoundPermutation(sizes, seeds)


@dataclass(frozen=True)
class BoundPermutation(BoundReparameterization):
    """Permutations of consecutive parts of a vector.

    Memory: the permutation and its inverse, d numbers of 4 bytes each (8 from d = 2^31), on each
    device it is used on.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    inverted: bool = False
    _cache: TensorCache = field(default_factory=TensorCache, repr=False, compare=False)

    @property
    def num_params(self) -> int:  # type: ignore[override]  # that of the parts
        """Number of parameters d."""
        return sum(self.sizes)

    def inverse(self) -> "BoundPermutation":
        """Invert the map; both share the memory of their indices."""
        return replace(self, inverted=not self.inverted)

    def _on_shards(self, holdings: Holdings) -> "BoundShardedPermutation":
        return BoundShardedPermutation(self, holdings)

    def _multiply(self, vector: Tensor) -> Tensor:
        return vector.index_select(0, self._index(self.inverted, vector.device))

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return vector.index_select(0, self._index(not self.inverted, vector.device))

    _multiply_transpose_squared = _multiply_transpose  # the entries of A are 0 and 1

    def _index(self, inverted: bool, device: torch.device) -> Tensor:
        return self._cache.get((inverted, device), lambda: self._draw(inverted, device))

    def _draw(self, inverted: bool, device: torch.device) -> Tensor:
        """Draw the index, the same on every device. Shape: (d,)."""
        dtype = torch.int32 if self.num_params < 2**31 else torch.int64
        index = torch.empty(self.num_params, dtype=dtype, device=device)
        for part in chunks(self.num_params, device):
            index[part] = self.images(part.start, part.stop - part.start, inverted, device)
        return index

    def images(self, first: int, count: int, inverted: bool, device: torch.device) -> Tensor:
        """Give the numbers in phi of some neighbours in theta, or if ``inverted`` the reverse."""
        return images_of_parts(self.sizes, self.seeds, first, count, inverted, device)


@dataclass(frozen=True)
class BoundShardedPermutation(BoundReparameterization):
    """A permutation of vectors of which each rank holds a shard."""

    whole: BoundPermutation
    holdings: Holdings
    _plans: dict[tuple[bool, torch.device], ShardedPermutation] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def num_params(self) -> int:  # type: ignore[override]  # those of a shard
        """Number of entries of this rank's shard."""
        return self.holdings.num_local

    def inverse(self) -> "BoundShardedPermutation":
        """Invert the map; both share their plans."""
        return replace(self, whole=self.whole.inverse())

    def _multiply(self, vector: Tensor) -> Tensor:
        return self._permuted(vector, self.whole.inverted)

    def _multiply_transpose(self, vector: Tensor) -> Tensor:
        return self._permuted(vector, not self.whole.inverted)

    _multiply_transpose_squared = _multiply_transpose

    def _permuted(self, vector: Tensor, inverted: bool) -> Tensor:
        holdings, key = self.holdings, (inverted, vector.device)
        if key not in self._plans:
            self._plans[key] = ShardedPermutation(
                lambda first, count, inverse, device: self.whole.images(
                    first, count, inverted != inverse, device
                ),
                self.whole.num_params, holdings.parts, holdings.layout, holdings.rank,
                vector.device,
            )  # fmt: skip
        return self._plans[key](holdings.own_part(vector.contiguous()), holdings.all_to_all)
