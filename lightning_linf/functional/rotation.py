"""A random rotation of vectors in O(d log d), without a stored matrix."""

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from lightning_linf.functional.full_precision import full_float32_precision
from lightning_linf.functional.kronecker import Matrix, SignedKronecker, Window
from lightning_linf.functional.signs import sign_key, sign_words
from lightning_linf.kernels import runs_kernels


def rotate(x: Tensor, *, seed: int, strength: float = 1.0, inverse: bool = False) -> Tensor:
    r"""Multiply with a random orthogonal matrix Q along the last dimension.

    Q is a product of up to four transforms :math:`D R D`, each of 2^k of the coordinates, a
    window: D has random signs on its diagonal, and R is the k-th Kronecker power of a rotation of
    the plane by an angle t. At t = 45 degrees, a full rotation, R mixes as the Walsh-Hadamard
    transform does, and the image of a basis vector looks like normal numbers (their kurtosis is
    3.0 +- 0.1). At t = 0 it is the identity.

    Args:
        x: Shape (..., d), real floating. All leading dimensions are multiplied with the same Q.
        seed: Seed of the signs, any integer. They are the same on every device.
        strength: From 0, the identity, to 1, a full rotation. The expected mean of the diagonal of
            Q falls linearly with it, so it is about 1 minus the cosine of the angle between a
            coordinate axis and its image. Only near 1 is the image spread evenly over all
            coordinates: its norm1 / (sqrt(d) norm2) is 0.05, 0.28, 0.59 and 0.80 at strength 0.5,
            0.9, 0.99 and 1 for d = 1e6, and 0.56, 0.79, 0.81 and 0.80 for d = 100.
        inverse: Multiply with the inverse, which is the transpose.

    Returns:
        A new tensor with the shape and dtype of ``x`` and no graph. Half precision is computed in
        float32 and rounded at the end, float32 in full precision whatever the settings of torch for
        matrix products.

    Raises:
        ValueError: If ``x`` is not real floating or has no dimension, or ``strength`` is outside
            [0, 1].

    Source:
        Random signs and fast transforms: Ailon & Chazelle 2009, SIAM J. Comput. 39(1); products of
        three: Yu et al., Orthogonal Random Features, arXiv:1610.09072. The windows, for any d, and
        the path to the identity are ours. Cost: 4 windows of 2^k <= d coordinates with 8 k flops
        for each, 33 to 120 memory copies of ``x`` in all on a CPU (benchmarks/rotation.py). A
        kernel on a GPU reads and writes a window at most three times, up to d = 2^30. Memory: the
        result, and a few MiB.

    Example:
        >>> axis = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
        >>> image = rotate(axis, seed=0)
        >>> torch.allclose(image.norm(), axis.norm())
        True
        >>> torch.allclose(rotate(image, seed=0, inverse=True), axis, atol=1e-6)
        True
        >>> torch.equal(rotate(axis, seed=0, strength=0.0), axis)
        True
    """
    _check("rotate", x, strength)
    return _transform(x, seed=seed, strength=strength, inverse=inverse, squared=False)


def rotate_squared(v: Tensor, *, seed: int, strength: float = 1.0, inverse: bool = False) -> Tensor:
    r"""Multiply with the expectation, over the random signs, of the entrywise square of Q.

    If the coordinates of a vector are uncorrelated and have the second moments ``v``, these are the
    second moments of what :func:`rotate` makes of it, on average over seeds. The matrix is a
    product over the same windows of S, the Kronecker power of the squared entries of a plane
    rotation; its rows and columns sum to 1. For d = 2 and 4, with a single window, it is the square
    of Q itself.

    Args:
        v: Second moments, shape (..., d), real floating.
        seed: Not used. It is there so that both functions are called with the same arguments.
        strength: As for :func:`rotate`.
        inverse: As for :func:`rotate`.

    Returns:
        A new tensor with the shape and dtype of ``v``.

    Raises:
        ValueError: If ``v`` is not real floating or has no dimension, or ``strength`` is outside
            [0, 1].

    Example:
        >>> rotate_squared(torch.tensor([1.0, 0.0]), seed=0)
        tensor([0.5000, 0.5000])
    """
    _check("rotate_squared", v, strength)
    return _transform(v, seed=seed, strength=strength, inverse=inverse, squared=True)


@torch.no_grad()
def _transform(x: Tensor, *, seed: int, strength: float, inverse: bool, squared: bool) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)
    rotate_(y, seed=seed, strength=strength, inverse=inverse, squared=squared)
    return y.to(x.dtype)


def rotate_(y: Tensor, *, seed: int, strength: float, inverse: bool, squared: bool) -> None:
    """Do what :func:`rotate`, or :func:`rotate_squared`, does, in place.

    Args:
        y: Shape (..., d), contiguous, float32 or float64, not to be recorded by autograd.
        seed: As for :func:`rotate`.
        strength: As for :func:`rotate`.
        inverse: As for :func:`rotate`.
        squared: Do what :func:`rotate_squared` does.
    """
    dim = y.shape[-1]
    if strength == 0 or dim < 2 or y.numel() == 0:
        return
    all_windows = rotation_windows(dim)
    streams = range(len(all_windows))[:: -1 if inverse else 1]
    windows = [all_windows[stream] for stream in streams]
    matrix = plane_rotation(dim, strength, inverse=inverse, squared=squared)
    if runs_kernels(y.device):
        from lightning_linf.kernels.kronecker import signed_kronecker_

        keys = None if squared else [sign_key(seed, stream) for stream in streams]
        signed_kronecker_(y.view(-1, dim), windows, matrix, keys)
        return
    words = None
    if not squared:
        num_words = max(1, 2 * windows[0].half // 32)
        words = [sign_words(num_words, seed=seed, stream=i, device=y.device) for i in streams]
    with full_float32_precision():
        SignedKronecker(windows[0].bits, matrix, y.view(-1, dim)).apply(windows, words)


def rotation_windows(dim: int) -> list[Window]:
    """Choose windows of 2^k coordinates, the largest power of two <= ``dim``, at least 2.

    They are the first 2^k coordinates, the last, those in the middle, and half of them from either
    end. Together they spread every coordinate evenly over all, for any ``dim`` (kurtosis at most
    3.03). First and last windows alone do not, however often they are repeated: with ``dim`` near
    2^(k+1) - 1 they hardly overlap (kurtosis 6).
    """
    half = 1 << (dim.bit_length() - 2)
    whole = Window(0, half, half)
    if dim == 2 * half:
        # A product of two transforms has rows of the same magnitudes, in other orders, so there are
        # three; but up to d = 4 one, as a second transform often undoes the first.
        return [whole] * (1 if dim <= 4 else 3)
    last = Window(dim - 2 * half, half, half)
    middle = Window((dim - 2 * half) // 2, half, half)
    ends = Window(0, dim - half, half)
    return [whole, last, middle, ends]


@lru_cache(maxsize=1024)
def rotation_angle(dim: int, strength: float) -> float:
    """Find the angle of mean diagonal 1 - strength (1 - m), with m that at 45 degrees."""
    full = math.pi / 4
    if strength == 1:
        return full
    target = 1 - strength * (1 - _mean_diagonal(dim, full))
    low, high = 0.0, full
    for _ in range(60):
        angle = (low + high) / 2
        if _mean_diagonal(dim, angle) > target:
            low = angle
        else:
            high = angle
    return (low + high) / 2


def _mean_diagonal(dim: int, angle: float) -> float:
    """Average cos(angle)^(k n_i), n_i windows holding i: the expected mean diagonal of Q."""
    windows = rotation_windows(dim)
    runs = [(s, s + w.half) for w in windows for s in (w.start, w.start + w.stride)]
    cuts = sorted({0, dim}.union(*runs))
    return sum(
        (end - begin)
        / dim
        * math.cos(angle) ** (windows[0].bits * sum(a <= begin < b for a, b in runs))
        for begin, end in pairwise(cuts)
    )


def plane_rotation(dim: int, strength: float, *, inverse: bool, squared: bool) -> Matrix:
    """Give the rotation of the plane whose powers mix ``dim`` coordinates, or its squares."""
    angle = rotation_angle(dim, float(strength))
    # At 45 degrees sine and cosine are the same number, so that powers of 1/2 come out exact.
    c, s = math.cos(angle), math.sin(angle) if angle < math.pi / 4 else math.cos(angle)
    if squared:
        return (c * c, s * s), (s * s, c * c)
    return ((c, s), (-s, c)) if inverse else ((c, -s), (s, c))


def _check(function: str, x: Tensor, strength: float) -> None:
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(
            f"{function}: expected a real floating tensor of shape (..., d), got {x.dtype} of "
            f"shape {tuple(x.shape)}. Convert it, or rotate real and imaginary parts."
        )
    check_strength(function, strength)


def check_strength(caller: str, strength: float) -> None:
    """Raise a ValueError unless the strength of a rotation lies between 0 and 1."""
    if not 0 <= strength <= 1:
        raise ValueError(
            f"{caller}: expected `strength` between 0 and 1, got {strength}. 0 is the identity, "
            "1 a full rotation."
        )
