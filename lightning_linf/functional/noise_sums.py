"""Sums over the gradients of microbatches, in memory that does not grow with their number."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.finite import all_finite, require_finite
from lightning_linf.functional.in_pieces import largest_magnitude, sum_in_pieces
from lightning_linf.functional.vector_shards import any_nonzero


class NoiseSums(NamedTuple):
    """What is kept of the gradients ``g_k`` of microbatches of ``w_k`` samples each.

    With ``W`` and ``m`` the weight and the weighted mean of all microbatches before it, microbatch
    k gives the *contrast* ``z_k = sqrt(w_k W / (W + w_k)) (g_k - m)``; the first gives none. If
    ``Var(g_k) = Sigma / w_k``, each contrast has mean 0 and variance ``Sigma`` for any weights, and
    no two are correlated. For two single samples the contrast is ``(g_2 - g_1) / sqrt(2)``.
    """

    weight: Tensor  # (): samples seen
    mean: Tensor  # (d,): weighted mean of the gradients, over `scale`
    squares: Tensor  # (2, d): sums of z_k^2 over `scale`^2, every other k in each half
    counts: Tensor  # (2,) int64: contrasts in each half
    norm_moments: Tensor  # (3,): number, sum and sum of squares of ||z_k||^2
    scale: Tensor  # (): a power of 2 near the largest entry, so that squares stay in range; 0 unset
    first_mean: Tensor  # (d,): weighted mean of every other gradient, over `scale`
    first_weight: Tensor  # (): samples in it
    turn: Tensor  # () int64: 0 if the next gradient is one of these, else 1


def noise_init(dim: int, like: Tensor, turn: int = 0) -> NoiseSums:
    """Make empty sums for gradients of ``dim`` entries.

    Args:
        dim: Number of entries d.
        like: A tensor with the device and dtype of the gradients; sums are float32 or wider.
        turn: Whether the first gradient belongs to ``first_mean`` (0) or the second does (1), so
            that ranks with one each can take turns.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return NoiseSums(
        weight=like.new_zeros((), dtype=wide_dtype(like)),
        mean=like.new_zeros(dim, dtype=dtype),
        squares=like.new_zeros(2, dim, dtype=dtype),
        counts=like.new_zeros(2, dtype=torch.int64),
        norm_moments=like.new_zeros(3, dtype=wide_dtype(like)),
        scale=like.new_zeros((), dtype=wide_dtype(like)),
        first_mean=like.new_zeros(dim, dtype=dtype),
        first_weight=like.new_zeros((), dtype=wide_dtype(like)),
        turn=torch.tensor(turn, dtype=torch.int64, device=like.device),
    )


def noise_update(sums: NoiseSums, gradient: Tensor, weight: float) -> None:
    """Add, in place, a microbatch: its mean gradient (d,) and how many samples it is a mean of."""
    noise_count(sums, noise_add(sums, gradient, weight))


def noise_count(sums: NoiseSums, norm: Tensor | None) -> None:
    """Add, in place, the squared norm () of one contrast to ``norm_moments``; None adds nothing."""
    if norm is not None:
        sums.norm_moments.add_(torch.stack([torch.ones_like(norm), norm, norm.square()]))


def noise_add(sums: NoiseSums, gradient: Tensor, weight: float) -> Tensor | None:
    """Add, in place, a microbatch to all but ``norm_moments``.

    Where ranks hold shards of the gradient, each adds its own entries here, and after the squared
    norms were added up over ranks, that of the whole contrast by :func:`noise_count`. Where vectors
    are shards in general (:func:`~lightning_linf.functional.vector_shards.sharing_vectors`), the
    squared norm is that of the whole contrast already.

    Args:
        sums: Those of the microbatches before it.
        gradient: Its mean gradient (d,), or the entries of it that this rank holds.
        weight: How many samples that is a mean of.

    Returns:
        The squared norm of these entries of the contrast, (), or None for the first microbatch.
    """
    if gradient.shape != sums.mean.shape:
        raise ValueError(
            f"noise: expected a gradient of shape {tuple(sums.mean.shape)}, got "
            f"{tuple(gradient.shape)}. Flatten and concatenate those of all parameters."
        )
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(
            f"noise: expected `weight` > 0, the number of samples in the microbatch, got {weight}."
        )
    require_finite(all_finite(gradient), "noise", "a finite gradient")
    before = float(sums.weight)
    sums.weight.add_(weight)
    gradient = gradient.detach().to(sums.mean.dtype)
    if not sums.scale > 0 and any_nonzero(gradient):  # all before were zero
        sums.scale.copy_(_power_of_two(largest_magnitude(gradient).to(sums.scale)))
    scale = float(sums.scale) or 1.0
    scaled = gradient / scale
    if sums.turn == 0:
        sums.first_weight.add_(weight)
        sums.first_mean.lerp_(scaled, weight / float(sums.first_weight))
    sums.turn.bitwise_xor_(1)
    difference = scaled.sub_(sums.mean)
    if before == 0.0:
        sums.mean.copy_(difference)
        return None
    sums.mean.add_(difference, alpha=weight / (before + weight))
    square = difference.mul_(math.sqrt(weight * before / (before + weight))).square_()
    half = int(sums.counts.sum()) % 2
    sums.squares[half] += square
    sums.counts[half] += 1
    return sum_in_pieces(lambda part: part, square) * scale * scale


def noise_merge(
    sums: NoiseSums, reduce: Callable[[Tensor], Tensor], spare: Tensor | None = None
) -> NoiseSums:
    """Merge the sums of all ranks; every rank gets the same.

    The means ``m_r`` of R ranks of weights ``W_r`` differ by noise, too: the sum over ranks of
    ``W_r (m_r - m)^2`` is that of R - 1 further contrasts squared (Chan, Golub & LeVeque 1979).
    Their sum is known, not each of them. So all go to one half, the one with fewer contrasts. To
    the moments of norms they add R numbers ``W_r ||m_r - m||^2 R / (R - 1)``, each of which has the
    mean that a contrast's squared norm has.

    ``mean`` and the sum of both halves equal those of one process that saw all microbatches; how
    contrasts and gradients fall into halves, and ``norm_moments``, do not.

    Args:
        sums: Those of this rank, which may have seen nothing. Their tensors are used up.
        reduce: Returns the sum over ranks of a tensor, on all of them, perhaps in place. Called
            with 4 d numbers in all and some scalars.
        spare: A tensor like ``sums.mean`` to work in, so that no memory is asked for between
            reductions.
    """
    spare = torch.empty_like(sums.mean) if spare is None else spare
    weight = reduce(sums.weight.clone())
    num_ranks = reduce((sums.weight > 0).to(torch.int64))
    counts = reduce(sums.counts.clone())
    scale = _power_of_two(reduce(sums.scale.clone()))
    rescale = (sums.scale / scale).to(spare.dtype)  # 0 where all were zero
    first_weight = reduce(sums.first_weight.clone())
    first_share = (sums.first_weight / first_weight).nan_to_num(0.0).to(spare.dtype)
    first_mean = reduce(sums.first_mean.mul_(rescale * first_share))
    sums.mean.mul_(rescale)
    sums.squares.mul_(rescale**2)
    share = (sums.weight / weight).nan_to_num(0.0).to(spare.dtype)
    mean = reduce(torch.mul(sums.mean, share, out=spare))
    between = sums.mean.sub_(mean).square_().mul_(sums.weight.to(spare.dtype))
    half = int(counts.argmin())
    sums.squares[half] += between
    counts[half] += (num_ranks - 1).clamp(min=0)
    moments = sums.norm_moments.clone()
    if num_ranks > 1 and sums.weight > 0:
        norm = (
            sum_in_pieces(lambda part: part, between) * scale.square() * num_ranks / (num_ranks - 1)
        )
        moments += torch.stack([torch.ones_like(norm), norm, norm.square()])
    squares, moments, turn = reduce(sums.squares), reduce(moments), torch.zeros_like(sums.turn)
    return NoiseSums(weight, mean, squares, counts, moments, scale, first_mean, first_weight, turn)


def _power_of_two(value: Tensor) -> Tensor:
    """Round to a power of 2, by which a division is exact; 0 becomes 1."""
    exponent = torch.frexp(torch.where(value > 0, value, 1.0)).exponent
    return torch.ldexp(torch.ones_like(value), exponent)
