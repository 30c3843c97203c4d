"""Random vectors that can be drawn again, chunk by chunk, from a seed instead of being stored."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 16  # entries drawn at a time: bounds the memory of 64 multipliers to about 32 MiB


def derive_seed(*parts: int | str) -> int:
    """Hash integers and names to one seed, so that different parts give unrelated streams.

    A generator on the CPU uses 32 bits of its seed. So among 1e5 seeds about one pair gives equal
    numbers, too few to be seen in any estimate here.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def chunks(dim: int) -> Iterator[tuple[int, slice]]:
    """Cut ``range(dim)`` into numbered slices of at most ``CHUNK`` entries."""
    for index, start in enumerate(range(0, dim, CHUNK)):
        yield index, slice(start, min(start + CHUNK, dim))


def cauchy_chunk(
    size: int, *, seed: int, probe: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw entries of one chunk of probe number ``probe``. Shape: (size,)."""
    generator = generator_on(device, derive_seed("cauchy", seed, probe, chunk))
    # Uniforms in float64: with the 24 bits of float32 the tails end near 1e7, and vectors of 1e8
    # entries would miss dozens of their largest ones (Tensor.cauchy_ on CUDA ends at 3e6).
    uniform = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
    return uniform.sub_(0.5).mul_(math.pi).tan_().to(device, dtype)


def cauchy(
    dim: int,
    *,
    seed: int,
    probe: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw one vector of independent standard Cauchy entries.

    Args:
        dim: Number of entries d.
        seed: Seed of the whole set of probes.
        probe: Number of this probe in the set.
        dtype: Floating dtype of the result.
        device: Where to draw. CPU and CUDA give different, equally good, numbers.

    Returns:
        The vector, shape (d,); the same for the same arguments.
    """
    device = torch.device(device)
    result = torch.empty(dim, dtype=dtype, device=device)
    for index, part in chunks(dim):
        result[part] = cauchy_chunk(
            part.stop - part.start, seed=seed, probe=probe, chunk=index, dtype=dtype, device=device
        )
    return result


def laplace_chunk(
    rows: int, size: int, *, seed: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw independent standard Laplace entries for one chunk of columns. Shape: (rows, size)."""
    generator = generator_on(device, derive_seed("laplace", seed, chunk))
    exponential = torch.empty(2, rows, size, device=generator.device, dtype=dtype)
    exponential.exponential_(generator=generator)
    return (exponential[0] - exponential[1]).to(device)


def normal(
    dim: int, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw one vector of independent standard normal entries. Shape: (d,)."""
    device = torch.device(device)
    generator = generator_on(device, derive_seed("normal", seed))
    return torch.randn(dim, generator=generator, device=generator.device, dtype=dtype).to(device)


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """Make a seeded generator that draws for a device."""
    # Other backends lack float64 or generators of their own: draw for them on the CPU.
    drawn_on = device if device.type in ("cpu", "cuda") else torch.device("cpu")
    return torch.Generator(drawn_on).manual_seed(seed)
