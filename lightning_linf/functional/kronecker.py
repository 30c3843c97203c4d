"""Multiply parts of a vector with Kronecker powers of a 2x2 matrix, as Hadamard transforms do."""

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Matrix = tuple[tuple[float, float], tuple[float, float]]

CHUNK_BITS = 4  # bits of the index in one product: 16x16 matrices cost CPUs the least time per bit
TURN_BITS = 3  # the same in a product that turns the bits of the index
WORD_BITS = 5  # a word holds 2^5 = 32 signs
TILE_BITS = 19  # tiles of 2^19 entries: two buffers and a mask of 2 MiB each fit into a CPU's cache
_KEPT = threading.local()  # a tile each for two buffers and up to four masks
DEVICE_TILE_BITS = 26  # elsewhere: the larger, the fewer launches; memory is the limit


class Window(NamedTuple):
    """Two runs of entries of a vector: Window(0, 6, 4) is the entries 0 to 3 and 6 to 9."""

    start: int  # of the first run
    stride: int  # from it to the start of the second
    half: int  # length of a run, a power of two

    @property
    def bits(self) -> int:
        """Number of bits k of the index within the window, which has 2^k entries."""
        return self.half.bit_length()


class SignedKronecker:
    r"""Multiply windows of 2^k entries with :math:`D M^{\otimes k} D`, D random signs, in place.

    A window that fits into one tile, a piece of memory that the cache holds, is transformed at
    once. A larger window is seen as a matrix whose rows are tiles. First each row is transformed:
    the low bits of the index. Then the columns are, as many at a time as fit into a tile: the high
    bits. So main memory is read and written twice, whatever k. Where kernels run, that of
    ``kernels/kronecker.py`` takes the place of this class.

    The signs come as the bits of 2^(k-5) words (of one word, if k < 5). Entry j of a window takes
    its sign from word ``j % 2^(k-5)``, from its bit ``31 - j // 2^(k-5)``. So neighbouring entries
    take the same bit of neighbouring words, which is fast to unpack.

    Args:
        bits: The number of bits k.
        matrix: The matrix M.
        y: What will be transformed, shape (n, d), contiguous, float32 or float64.
    """

    def __init__(self, bits: int, matrix: Matrix, y: Tensor) -> None:
        tile_bits = TILE_BITS if y.device.type == "cpu" else DEVICE_TILE_BITS
        assert bits <= 2 * tile_bits  # at least one column fits into a tile
        self._y, self._bits = y, bits
        self._tile_bits = min(bits, tile_bits)
        # How many of the n vectors are transformed together in one tile.
        self._num_rows = min(len(y), 1 << (tile_bits - self._tile_bits))
        size = self._num_rows << self._tile_bits
        self._buffers = (_scratch("a", size, y), _scratch("b", size, y))
        self._matrix = matrix
        self._integer = torch.int32 if y.dtype == torch.float32 else torch.int64
        # A shift to the left by each of these brings one of the 32 bits of a word to the place of
        # the sign bit of a float of this width.
        first = torch.iinfo(self._integer).bits - 32
        num_signs = 1 << min(bits, WORD_BITS)
        self._shifts = torch.arange(
            first, first + num_signs, dtype=self._integer, device=y.device
        )  # (b,)

    def apply(self, windows: Sequence[Window], words: Sequence[Tensor] | None) -> None:
        """Transform the windows one after the other.

        Args:
            windows: Each with 2^k entries.
            words: For each window the words with its signs, int32, shape (max(1, 2^(k - 5)),).
                None: all signs are +.
        """
        tables: Sequence[Tensor | None] = [None] * len(windows)
        if words is not None:
            tables = [table.to(self._integer) for table in words]
        if self._tile_bits == self._bits:
            self._transform_rows(windows, tables)
            return
        for row in self._y:
            for window, table in zip(windows, tables, strict=True):
                self._transform_large(row, window, table)

    def _transform_rows(self, windows: Sequence[Window], tables: Sequence[Tensor | None]) -> None:
        """Transform windows that fit into a tile: all windows of some vectors, then of others."""
        masks: list[Tensor | None] = [None] * len(windows)
        is_alone = len(self._y) <= self._num_rows  # then one mask at a time will do
        for begin in range(0, len(self._y), self._num_rows):
            rows = self._y[begin : begin + self._num_rows]
            for number, (window, table) in enumerate(zip(windows, tables, strict=True)):
                if table is not None and begin == 0:
                    part = 0 if is_alone else number
                    masks[number] = self._unpack(table, self._shifts[:, None], part)
                mask = masks[number]
                tile = rows.as_strided(
                    (len(rows), 2, window.half),
                    (rows.stride(0), window.stride, 1),
                    rows.storage_offset() + window.start,
                )
                self._transform(tile, self._bits, 1, before=mask, after=mask)

    def _transform_large(self, row: Tensor, window: Window, table: Tensor | None) -> None:
        """Transform a window that is larger than a tile, as a matrix (num, size) of tiles."""
        size = 1 << self._tile_bits
        num = 1 << (self._bits - self._tile_bits)
        tiles = row.as_strided(
            (2, num // 2, size), (window.stride, size, 1), row.storage_offset() + window.start
        )
        # Entry (t, c) of the matrix takes sign t size + c: bit i (from the highest) of word w, if
        # that is i num_words + w. For num <= 32 a row takes 32 / num bits of all words; otherwise
        # num / 32 rows share a bit, each of some of the words. `shifts` and `words` have an axis
        # for each of the two cases, of which at least one has the length 1.
        num_bits = min(num, 32)
        shifts = self._shifts.view(num_bits, -1, 1)  # (num_bits, 32 / num_bits, 1)
        words = None if table is None else table.view(num // num_bits, -1)
        mask: Tensor | None = None
        for index in range(num):
            if words is not None:
                bit, part = divmod(index, len(words))
                mask = self._unpack(words[part], shifts[bit])
            tile = tiles[index // (num // 2), index % (num // 2)]
            self._transform(tile, self._tile_bits, 1, before=mask)
        width = min(size // num, 1 << (self._bits - WORD_BITS))
        for first in range(0, size, width):
            if words is not None:
                part, begin = divmod(first, words.shape[1])
                mask = self._unpack(words[:, begin : begin + width], shifts[:, part, None])
            columns = tiles[..., first : first + width]
            self._transform(columns, self._bits - self._tile_bits, width, after=mask)

    def _unpack(self, words: Tensor, shifts: Tensor, number: int = 0) -> Tensor:
        """Make a flat mask with the sign bit of floats set where that bit of a word is.

        It is valid until the next one with its number is made.
        """
        # torch.broadcast_shapes takes as long as many a transform.
        shape = torch.broadcast_tensors(words, shifts)[0].shape  # type: ignore[no-untyped-call]
        size = math.prod(shape)
        mask = _scratch(f"mask {number}", 1 << self._tile_bits, words)[:size]
        torch.bitwise_left_shift(words, shifts, out=mask.view(shape))
        return mask.bitwise_and_(torch.iinfo(self._integer).min)

    def _transform(
        self,
        tile: Tensor,
        bits: int,
        trail: int,
        *,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> None:
        """Multiply one tile, seen as (..., 2^bits, trail); flip signs before it and after it."""
        turns = tile.is_cpu and tile.numel() == 1 << bits
        chunks, low = _chunks(bits, TURN_BITS if turns else CHUNK_BITS), 0
        in_place = tile.is_contiguous() and len(chunks) > 1
        if in_place:
            source = tile.view(-1)
        else:
            source = self._buffers[1][: tile.numel()]
            source.view(tile.shape).copy_(tile)
        if before is not None:
            _flip(source, before)
        for step, chunk in enumerate(chunks):
            matrix = _power(self._matrix, chunk, source.dtype, source.device)
            target = self._buffers[step % 2][: tile.numel()]
            if step == len(chunks) - 1 and in_place:
                target = tile.view(-1)
            if turns:
                _multiply_and_turn(matrix, source, out=target)
            else:
                _multiply(matrix, source, trail << low, out=target)
            source, low = target, low + chunk
        if after is not None:
            _flip(source, after)
        if not in_place:
            tile.copy_(source.view(tile.shape))


def mix_rows_(y: Tensor, matrix: Matrix) -> None:
    """Multiply y (2^k, width) with a Kronecker power along its first dimension, in place.

    Contiguous, float32 or float64. Some columns at a time, so that both buffers fit into a cache.
    """
    num, width = y.shape
    tile_bits = TILE_BITS if y.device.type == "cpu" else DEVICE_TILE_BITS
    most = max(1, (1 << tile_bits) // num)
    buffers = [_scratch(name, num * min(most, width), y) for name in "ab"]
    for first in range(0, width, most):
        columns = y[:, first : first + most]
        source, target = (each[: columns.numel()] for each in buffers)
        source.view(columns.shape).copy_(columns)
        low = 0
        for chunk in _chunks(num.bit_length() - 1, CHUNK_BITS):
            power = _power(matrix, chunk, y.dtype, y.device)
            _multiply(power, source, columns.shape[1] << low, out=target)
            source, target, low = target, source, low + chunk
        columns.copy_(source.view(columns.shape))


def _scratch(name: str, size: int, like: Tensor) -> Tensor:
    """Give memory to work in, (size,), the same one to every caller of a thread on CPUs.

    There, fresh memory of a MiB may cost more than a product: the system maps it page by page.
    """
    if like.device.type != "cpu":
        return like.new_empty(size)
    key = f"{name} {like.dtype}"
    kept: Tensor | None = getattr(_KEPT, key, None)
    if kept is None or len(kept) < size:
        with torch.inference_mode(False):  # it may be used in or out of inference mode
            kept = torch.empty(size, dtype=like.dtype)
        setattr(_KEPT, key, kept)
    return kept[:size]


def _flip(x: Tensor, mask: Tensor) -> None:
    """Flip the sign bit of x where the mask has it, which is exact for NaN, too."""
    x.view(mask.dtype).view(-1, len(mask)).bitwise_xor_(mask)


def _multiply(matrix: Tensor, x: Tensor, stride: int, *, out: Tensor) -> None:
    """Multiply x, seen as (..., m, stride), with a matrix (m, m) along the middle dimension."""
    size = len(matrix)
    if stride == 1:
        torch.mm(x.view(-1, size), matrix.mT, out=out.view(-1, size))
    else:
        shape = (x.numel() // (size * stride), size, stride)
        torch.bmm(matrix.expand(shape[0], -1, -1), x.view(shape), out=out.view(shape))


def _multiply_and_turn(matrix: Tensor, x: Tensor, *, out: Tensor) -> None:
    """Multiply x, seen as (..., m), with a matrix (m, m) along the last dimension, the new first.

    So the lowest bits of the index become the highest, and the next product finds others in their
    place: rows of the result are long in all of them.
    """
    size = len(matrix)
    torch.mm(matrix, x.view(-1, size).t(), out=out.view(size, -1))


def _chunks(bits: int, most: int) -> list[int]:
    """Cut a number of bits into chunks of so many, of which the last may be smaller, but not 1."""
    whole, rest = divmod(bits, most)
    if rest == 1 and whole:
        return [most] * (whole - 1) + [most + 1]
    return [most] * whole + [rest] * (rest > 0)


@lru_cache(maxsize=256)  # small; and a copy to a GPU in each call would make the CPU wait
def _power(matrix: Matrix, exponent: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Compute the Kronecker power of a 2x2 matrix in float64, then round it to ``dtype``."""
    with torch.inference_mode(False):  # the cache may be used in or out of inference mode
        power = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(exponent):
            power = torch.kron(power, torch.tensor(matrix, dtype=torch.float64))
        return power.to(device=device, dtype=dtype)
