"""A change of the units of the parameters."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

import torch
from torch import Tensor

from lightning_linf.functional.holdings import Holdings
from lightning_linf.reparam.bound import BoundReparameterization
from lightning_linf.reparam.cache import TensorCache
from lightning_linf.reparam.reparameterization import Reparameterization, check_pattern


@dataclass(frozen=True, eq=False)
class Scaling(Reparameterization):
    """Change the units of the coordinates: theta = D phi, D diagonal.

    Adam with eps = 0 then trains as Adam in the old coordinates with a learning rate ``lr D_i`` for
    each of them, SGD as SGD with ``lr D_i**2``.

    Args:
        factors: The diagonal of D, nonzero and finite: one number for all, or a tensor (d,), one
            for each coordinate of the selected tensors, flattened and joined in their order.
        only: A regular expression, searched in the names of the parameters; those without a match
            keep their coordinates.

    Raises:
        ValueError: If a factor is zero, infinite or NaN, or the tensor is not real or not a vector;
            in :meth:`bind`, if it has not one factor for each coordinate.

    Example:
        >>> bound = Scaling(torch.tensor([1.0, 2.0, 4.0])).bind([torch.Size([3])])
        >>> bound.apply(torch.ones(3))
        tensor([1., 2., 4.])
        >>> bound.inverse().apply(torch.ones(3))
        tensor([1.0000, 0.5000, 0.2500])
    """

    factors: float | Tensor
    _: KW_ONLY
    only: str | None = None

    def __post_init__(self) -> None:
        check_pattern(self.only, "Scaling")
        if not isinstance(self.factors, Tensor):
            if not math.isfinite(self.factors) or self.factors == 0:
                raise ValueError(
                    f"Scaling: expected a nonzero finite factor, got {self.factors}. Only then has "
                    "the map an inverse."
                )
            object.__setattr__(self, "factors", float(self.factors))
            return
        if self.factors.ndim != 1 or self.factors.is_complex() or self.factors.dtype == torch.bool:
            raise ValueError(
                f"Scaling: expected a number or a real tensor of shape (d,), got "
                f"{self.factors.dtype} of shape {tuple(self.factors.shape)}. Flatten and join the "
                "factors of the tensors."
            )
        is_wrong = (self.factors == 0) | ~self.factors.isfinite()
        if is_wrong.any():
            index = int(is_wrong.nonzero()[0])
            raise ValueError(
                f"Scaling: expected nonzero finite factors, got {self.factors[index].item()} at "
                f"{index}. Only then has the map an inverse."
            )
        own = self.factors.detach().clone()  # nobody else can change it in place
        object.__setattr__(self, "factors", own)

    @property
    def mixes_tensors(self) -> bool:
        """False: each entry of phi belongs to one entry of theta."""
        return False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scaling):
            return NotImplemented
        return self.only == other.only and _equal(self.factors, other.factors)

    def __hash__(self) -> int:
        return hash((self.only, _summary(self.factors)))

    def __repr__(self) -> str:
        return f"Scaling({_summary(self.factors)}, only={self.only!r})"

    def _bind(self, shapes: Sequence[torch.Size], stream: int) -> BoundReparameterization:
        num_params = sum(math.prod(shape) for shape in shapes)
        if isinstance(self.factors, Tensor) and len(self.factors) != num_params:
            raise ValueError(
                f"Scaling: expected one factor for each of {num_params} coordinates of the "
                f"selected tensors, got {len(self.factors)}. Each parameter group of an optimizer "
                "is bound by itself: for several, multiply Scalings with `only`."
            )
        return BoundScaling(num_params, self.factors)


@dataclass(frozen=True, eq=False)
class BoundScaling(BoundReparameterization):
    """Multiplication with factors, one for all or (d,)."""

    num_params: int
    factors: float | Tensor
    inverted: bool = False
    _cache: TensorCache = field(default_factory=TensorCache, repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundScaling):
            return NotImplemented
        same = self.num_params == other.num_params and self.inverted == other.inverted
        return same and _equal(self.factors, other.factors)

    def __hash__(self) -> int:
        return hash((self.num_params, self.inverted, _summary(self.factors)))

    def __repr__(self) -> str:
        return (
            f"BoundScaling({self.num_params}, {_summary(self.factors)}, inverted={self.inverted})"
        )

    def inverse(self) -> "BoundScaling":
        """Invert the map."""
        return replace(self, inverted=not self.inverted)

    def _on_shards(self, holdings: Holdings) -> "BoundScaling":
        factors = self.factors
        if isinstance(factors, Tensor):
            factors = holdings.shard_of(factors)
        return BoundScaling(holdings.num_local, factors, self.inverted)

    def _multiply(self, vector: Tensor) -> Tensor:
        factors = self._factors(vector)
        return (vector / factors if self.inverted else vector * factors).to(vector.dtype)

    _multiply_transpose = _multiply

    def _multiply_transpose_squared(self, vector: Tensor) -> Tensor:
        return self._multiply(self._multiply(vector))  # squares of the factors might overflow

    def _factors(self, like: Tensor) -> float | Tensor:
        factors = self.factors
        if not isinstance(factors, Tensor):
            return factors
        dtype = torch.promote_types(like.dtype, torch.float32)
        return self._cache.get((dtype, like.device), lambda: factors.to(like.device, dtype))


def _equal(a: float | Tensor, b: float | Tensor) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a.cpu() == b.cpu()).all())
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _summary(factors: float | Tensor) -> str:
    if not isinstance(factors, Tensor):
        return repr(factors)
    content = factors.cpu().double().numpy().tobytes()  # the name tells saved states apart
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    low, high = (f"{float(end):.4g}" for end in factors.abs().aminmax())
    return f"<{len(factors)} factors, magnitudes {low} to {high}, hash {digest}>"
