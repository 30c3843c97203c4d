"""Random vectors that can be drawn again from a seed, in parts, instead of being stored."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_linf.functional.counters import (
    NUM_COUNTERS,
    ROUNDS,
    hashed_words,
    key_words,
    signed,
)
from lightning_linf.kernels import runs_kernels

# Entries computed at a time. On a CPU temporary numbers then stay in its cache; elsewhere launches
# are few, and a temporary vector takes 64 MiB.
_CPU_CHUNK, _GPU_CHUNK = 1 << 16, 1 << 24
_UNIT = 2.0**-31  # times a signed word: within (-1, 1)


def derive_seed(*parts: int | str) -> int:
    """Hash integers and names to one seed of 63 bits: different parts give unrelated streams."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def chunk_size(device: torch.device, multiple: int = 1) -> int:
    """Give how many entries to compute at a time on a device: a multiple of ``multiple``."""
    size = _CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK
    return max(1, size // multiple) * multiple


def chunks(dim: int, device: torch.device, multiple: int = 1) -> Iterator[slice]:
    """Cut ``range(dim)`` into slices of :func:`chunk_size` entries; the last one may be shorter."""
    step = chunk_size(device, multiple)
    for start in range(0, dim, step):
        yield slice(start, min(start + step, dim))


def cauchy(
    dim: int,
    *,
    seed: int,
    probe: int,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw one vector of independent standard Cauchy entries, or a part of it.

    An entry depends on seed, probe and its number alone: it is the same, up to rounding, in every
    dtype, on every device, and in every part.

    Args:
        dim: How many entries.
        seed: Seed of the whole set of probes.
        probe: Number of this probe in the set.
        first: Number of the first entry.
        dtype: Floating dtype of the result.
        device: Where to draw.

    Returns:
        The entries, shape (dim,). Magnitudes are from 3.7e-10 to 2.7e9.

    Source:
        ``tan(pi u / 4)`` of a uniform u in (-1, 1), or with probability 1/2 its reciprocal, has
        the standard Cauchy law. Near 0 the u are odd multiples of 2^-31, which float32 holds
        exactly, so that tails are right without float64. Memory: the result and one chunk.
    """
    result = torch.empty(dim, dtype=dtype, device=device)
    for part, counter, page in _pages(first, dim):
        _fill_with_cauchy(result[part], counter, derive_seed("cauchy", seed, probe, page))
    return result


def laplace(
    dim: int, *, seed: int, first: int = 0, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw entries ``first`` to ``first + dim - 1`` of independent standard Laplace numbers.

    Their magnitudes are standard exponential. Shape: (dim,).
    """
    result = torch.empty(dim, dtype=dtype, device=device)
    for part, counter, page in _pages(first, dim):
        key = derive_seed("laplace", seed, page)
        uniform = _uniform(part.stop - part.start, counter, key, result)
        result[part] = uniform.abs().log_().copysign_(uniform)
    return result


def normal(
    dim: int,
    *,
    seed: int,
    first: int = 0,
    whole: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw one vector of independent standard normal entries, the same on every device, or a part.

    Args:
        dim: How many entries.
        seed: Seed of the whole vector.
        first: Number of the first entry.
        whole: Number of entries of the whole vector; None: these are all.
        dtype: Floating dtype of the result.
        device: Where to draw.

    Returns:
        The entries, shape (dim,). Magnitudes are below 6.6.

    Source:
        Box & Muller, Ann. Math. Statist. 29 (1958), a pair for each two entries half a vector
        apart. Memory: the result and a few chunks.
    """
    result = torch.empty(dim, dtype=dtype, device=device)
    whole = dim if whole is None else whole
    half = (whole + 1) // 2
    if (first, dim) == (0, whole):
        _fill_with_normals(seed, 0, half, result[:half], result[half:])
        return result
    middle = min(max(half - first, 0), dim)  # how many of the entries are in the first half
    sines, cosines = result[:middle], result[middle:]
    _fill_with_normals(seed, first, middle, sines, result[:0])
    _fill_with_normals(seed, first + middle - half, dim - middle, result[:0], cosines)
    return result


def _fill_with_normals(seed: int, first: int, count: int, sines: Tensor, cosines: Tensor) -> None:
    """Write both numbers of ``count`` pairs from ``first`` on, as many as there is room for."""
    for part, counter, page in _pages(first, count):
        for chunk in chunks(part.stop - part.start, sines.device):
            size, start = chunk.stop - chunk.start, counter + chunk.start
            radii, angles, signs = _polar(size, start, derive_seed("normal", seed, page), sines)
            at = part.start + chunk.start
            if len(sines):
                torch.mul(radii, angles.sin(), out=sines[at : at + size])
            others = cosines[at : at + size]  # of a whole vector one less, if d is odd
            others.copy_(angles.cos_().mul_(radii).mul_(signs)[: len(others)])


def inverse_normals(dim: int, *, seed: int, probe: int, first: int, like: Tensor) -> Tensor:
    """Draw ``1 / |g|`` with a standard normal g for each entry from ``first`` on. Shape: (dim,)."""
    parts = []
    for part, counter, page in _pages(first, dim):
        key = derive_seed("radius", seed, probe, page)
        radii, angles, _ = _polar(part.stop - part.start, counter, key, like)
        parts.append(angles.sin_().abs_().mul_(radii).reciprocal_())
    return torch.cat(parts) if parts else like.new_empty(0)


def _pages(first: int, dim: int) -> Iterator[tuple[slice, int, int]]:
    """Cut entries from ``first`` on where counters of 32 bits end: slice, counter, page."""
    start = first
    while start < first + dim:
        page, counter = divmod(start, NUM_COUNTERS)
        stop = min(first + dim, (page + 1) * NUM_COUNTERS)
        yield slice(start - first, stop - first), counter, page
        start = stop


def _fill_with_cauchy(result: Tensor, counter: int, key: int) -> None:
    """Write the numbers of the counters from ``counter`` on into ``result``."""
    if runs_kernels(result.device):
        from lightning_linf.kernels.counter_cauchy import fill_with_cauchy

        low, high = key_words(key)
        (_, first), (_, second), (_, third) = ROUNDS
        fill_with_cauchy(
            result, offset=signed(counter + low), key=signed(high),
            multipliers=(first, second, third), angle=math.pi / 4 * _UNIT,
        )  # fmt: skip
        return
    for part in chunks(len(result), result.device):
        words = hashed_words(
            counter + part.start, part.stop - part.start, key=key, device=result.device
        )
        dtype = torch.promote_types(result.dtype, torch.float32)
        tangents = words.bitwise_or(1).to(dtype).mul_(math.pi / 4 * _UNIT).tan_()
        # Exact at both ends, and several times as fast as `where` on a CPU.
        is_reciprocal = words.bitwise_and_(1).to(dtype)
        result[part] = torch.lerp(tangents, tangents.reciprocal(), is_reciprocal)


def _uniform(size: int, counter: int, key: int, like: Tensor) -> Tensor:
    """Draw from (-1, 1): odd multiples of 2^-31, float32 or wider. Shape: (size,)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    words = hashed_words(counter, size, key=key, device=like.device)
    return words.bitwise_or_(1).to(dtype).mul_(_UNIT)


def _polar(size: int, counter: int, key: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw radii of pairs of normals, angles within a quarter turn, and signs. (size,) each."""
    # Rounded to 1, a number would give the radius 0, and an infinite reciprocal.
    uniform = _uniform(size, counter, derive_seed("radius", key), like).abs_()
    radii = uniform.clamp_(max=1 - 2.0**-24).log_().mul_(-2).sqrt_()
    words = hashed_words(counter, size, key=derive_seed("angle", key), device=like.device)
    angles = words.bitwise_or(1).to(radii.dtype).mul_(math.pi / 2 * _UNIT)
    signs = words.bitwise_and_(1).to(radii.dtype).mul_(2).sub_(1)
    return radii, angles, signs
