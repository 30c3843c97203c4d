"""Multiply windows of a vector with Kronecker powers of a 2x2 matrix between random signs."""

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile is held by 8 warps: 32 float32 in the registers of each thread, or 16 float64.
TILE_BITS = {torch.float32: 13, torch.float64: 12}
COLUMN_BITS = 5  # runs of 32 entries make up whole lines of a GPU's cache
NUM_WARPS = 8
_TOP = tl.constexpr(0x80000000)


def signed_kronecker_(
    y: Tensor,
    windows: Sequence[tuple[int, int, int]],
    matrix: tuple[tuple[float, float], tuple[float, float]],
    keys: Sequence[int] | None,
    *,
    tile_bits: int | None = None,
) -> None:
    r"""Multiply windows of 2^k entries with :math:`D M^{\otimes k} D`, in place, one after another.

    The first launch for a window mixes the low bits of the index, of tiles of 2^13 neighbours. Each
    further one mixes up to 8 bits more, of tiles of 2^m rows, far apart, of neighbours. So memory
    is read and written once up to k = 13, twice up to 21, three times up to 29. The signs are
    hashed on the way.

    Args:
        y: Shape (n, d), contiguous, float32 or float64.
        windows: Start of the first run, distance from it to the start of the second, and length of
            a run, 2^(k-1), the same in all windows.
        matrix: M, a rotation of the plane or the squares of its entries.
        keys: Of the signs of each window. None: all signs are +.
        tile_bits: Bits of the index in a tile, at least 2. None: what suits GPUs.

    Source:
        As :class:`~lightning_linf.functional.kronecker.SignedKronecker`, from which it differs by
        rounding: it mixes bit by bit, and M is scaled to have ones on its diagonal.
    """
    tile_bits = TILE_BITS[y.dtype] if tile_bits is None else tile_bits
    num_bits = windows[0][2].bit_length()
    scale, upper, lower = _scaled(matrix, y.dtype)
    passes = list(pairwise(_borders(num_bits, tile_bits)))
    vectors = max(0, tile_bits - num_bits)
    grid = (triton.cdiv(len(y), 1 << vectors) << max(0, num_bits - tile_bits),)
    for number, (start, stride, _) in enumerate(windows):
        key = 0 if keys is None else keys[number]
        for low, high in passes:
            numbers = (scale ** (high - low), upper, lower)
            with torch.cuda.device(y.device if y.is_cuda else -1):
                _mix[grid](
                    y,
                    *(*y.shape, start, stride, _signed(key), _signed(key >> 31)),
                    *map(_bits, numbers),
                    BITS=num_bits,
                    LOW=low,
                    MIXED=high - low,
                    COLUMNS=tile_bits - (high - low) if low else 0,
                    VECTORS=vectors,
                    BEFORE=keys is not None and low == 0,
                    AFTER=keys is not None and high == num_bits,
                    num_warps=NUM_WARPS,
                )


@lru_cache
def _borders(num_bits: int, tile_bits: int) -> tuple[int, ...]:
    """Cut the bits of the index into those that one launch mixes: 0, ..., num_bits."""
    first = min(num_bits, tile_bits)
    most = max(tile_bits - COLUMN_BITS, (tile_bits + 1) // 2)
    num = -(-(num_bits - first) // most)
    return (0, *(first + (num_bits - first) * i // max(1, num) for i in range(num + 1)))


@lru_cache
def _scaled(
    matrix: tuple[tuple[float, float], tuple[float, float]], dtype: torch.dtype
) -> tuple[float, float, float]:
    """Write M as c ((1, upper), (lower, 1)): c, upper, lower.

    ``upper`` and ``lower`` are rounded first, and c is that of the rounded ones. So M^(x)k keeps
    the 2-norm, or if M is that of squares the sum, to the rounding of c^k alone.
    """
    upper, lower = (
        torch.tensor(entry / matrix[0][0], dtype=dtype).item()
        for entry in (matrix[0][1], matrix[1][0])
    )
    if upper == lower:
        return 1 / (1 + upper), upper, lower
    return 1 / math.sqrt(1 - upper * lower), upper, lower


def _signed(word: int) -> int:
    """The low 32 bits as an integer that Triton passes in 32 bits, whatever its value."""
    return ((word & 0xFFFFFFFF) ^ (1 << 31)) - (1 << 31)


def _bits(number: float) -> int:
    """The bits of a float64 as an integer, since Triton passes floats in float32."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


@triton.jit
def _number(bits: tl.tensor, like: tl.tensor) -> tl.tensor:
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True).to(like.dtype)


@triton.jit
def _flip(
    x: tl.tensor, word: tl.tensor, bit: tl.tensor, key_low: tl.tensor, key_high: tl.tensor
) -> tl.tensor:
    """Flip signs by a bit, counted from the highest, of the words of ``functional/signs.py``."""
    word = word.to(tl.uint32) + key_low.to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x21F0AAAD
    word = word ^ key_high.to(tl.uint32)
    word = (word ^ (word >> 15)) * 0x735A2D97
    word = word ^ (word >> 15) ^ _TOP
    sign = (word << bit.to(tl.uint32)) & _TOP
    if x.dtype == tl.float64:
        flipped = x.to(tl.uint64, bitcast=True) ^ (sign.to(tl.uint64) << 32)
    else:
        flipped = x.to(tl.uint32, bitcast=True) ^ sign
    return flipped.to(x.dtype, bitcast=True)


@triton.jit
def _mix_bit(
    x: tl.tensor, upper: tl.tensor, lower: tl.tensor, HIGH: tl.constexpr, LOW: tl.constexpr
) -> tl.tensor:
    """Multiply x, seen as (HIGH, 2, LOW), with ((1, upper), (lower, 1)) along the middle."""
    first, second = tl.split(tl.permute(tl.reshape(x, (HIGH, 2, LOW)), (0, 2, 1)))
    y = tl.join(first + upper * second, second + lower * first)
    return tl.reshape(tl.permute(y, (0, 2, 1)), (HIGH * 2 * LOW,))


@triton.jit(
    do_not_specialize=[
        *("num_vectors", "dim", "start", "stride"),
        *("key_low", "key_high", "scale", "upper", "lower"),
    ]
)
def _mix(
    y: tl.tensor,  # (n, d)
    num_vectors: tl.tensor,
    dim: tl.tensor,
    start: tl.tensor,  # of a window, as in signed_kronecker_
    stride: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    scale: tl.tensor,  # of all bits that are mixed; this and what follows are bits of float64
    upper: tl.tensor,
    lower: tl.tensor,
    BITS: tl.constexpr,  # of the index in a window
    LOW: tl.constexpr,  # the lowest that is mixed
    MIXED: tl.constexpr,  # how many are
    COLUMNS: tl.constexpr,  # bits of the index in a tile: below those mixed
    VECTORS: tl.constexpr,  # and above them, if a tile holds windows of several vectors
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
) -> None:
    """Flip signs, mix some bits of the index, and flip signs again, of one tile."""
    TILE: tl.constexpr = VECTORS + MIXED + COLUMNS
    TILES: tl.constexpr = BITS - MIXED - COLUMNS  # bits of the number of tiles in a window
    SHIFT: tl.constexpr = BITS - 5 if BITS > 5 else 0  # a window has 2^SHIFT words of signs
    TOP: tl.constexpr = BITS - 1  # the bit of the index that tells the two runs of a window apart
    tile = tl.program_id(0)
    place = tl.arange(0, 1 << TILE)
    vector = (tile >> TILES).to(tl.int64)
    if VECTORS > 0:
        vector = (vector << VECTORS) + (place >> BITS)
    tile = tile & ((1 << TILES) - 1)
    if BITS > 31:
        tile, place = tile.to(tl.int64), place.to(tl.int64)
    # The index is first + local. Both have bits of their own, so that what is known of those of
    # local, which differ within a thread, stays known to the compiler.
    first = ((tile >> (LOW - COLUMNS)) << (LOW + MIXED)) + (
        (tile & ((1 << (LOW - COLUMNS)) - 1)) << COLUMNS
    )
    local = (((place >> COLUMNS) & ((1 << MIXED) - 1)) << LOW) + (place & ((1 << COLUMNS) - 1))
    gap = stride - (1 << TOP)
    entry = y + (vector * dim + start + first + (first >> TOP) * gap)
    entry += local + (local >> TOP) * gap
    word = (first & ((1 << SHIFT) - 1)) + (local & ((1 << SHIFT) - 1))
    bit = (first >> SHIFT) + (local >> SHIFT)
    if VECTORS > 0:
        x = tl.load(entry, mask=vector < num_vectors)
    else:
        x = tl.load(entry)
    if BEFORE:
        x = _flip(x, word, bit, key_low, key_high)
    x = x * _number(scale, x)
    upper, lower = _number(upper, x), _number(lower, x)
    for step in tl.static_range(COLUMNS, COLUMNS + MIXED):
        x = _mix_bit(x, upper, lower, 1 << (TILE - 1 - step), 1 << step)
    if AFTER:
        x = _flip(x, word, bit, key_low, key_high)
    if VECTORS > 0:
        tl.store(entry, x, mask=vector < num_vectors)
    else:
        tl.store(entry, x)
