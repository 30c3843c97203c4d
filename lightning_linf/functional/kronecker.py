"""Kronecker powers of 2x2 matrices on windows of a vector, in place and in the cache."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Matrix = tuple[tuple[float, float], tuple[float, float]]

CHUNK_BITS = 4  # of the index, for one product: 16x16 matrices cost CPUs the least time per bit
WORD_BITS = 5  # a word holds 32 signs
TILE_BITS = 19  # on CPUs, where two buffers and a mask of 2 MiB each stay in the cache
DEVICE_TILE_BITS = 26  # elsewhere: the larger, the fewer launches; memory is the limit


class Window(NamedTuple):
    """Which entries of a vector are transformed: two runs of equal length."""

    start: int  # of the first run
    stride: int  # from it to the start of the second
    half: int  # length of a run, a power of two

    @property
    def bits(self) -> int:
        """Number of bits k of the index within the window, which has 2^k entries."""
        return self.half.bit_length()


class SignedKronecker:
    r"""Multiply windows of 2^k entries with :math:`D M^{\otimes k} D`, D random signs, in place.

    A window that fits into a tile is transformed there, whole. In a larger one, first the low bits
    of the index are, tile by tile, then the high bits, in tiles of all rows and some columns. So
    main memory is read and written twice, whatever k.

    Sign j of a window of 2^k entries is bit 31 - b of word r, where j = b 2^(k-5) + r: neighbours
    take the same bit of neighbouring words, which is fast to unpack. Windows of fewer than 32
    entries need one word.

    Args:
        bits: k.
        matrix: M.
        y: What will be transformed, shape (n, d), contiguous, float32 or float64.
    """

    def __init__(self, bits: int, matrix: Matrix, y: Tensor) -> None:
        tile_bits = TILE_BITS if y.device.type == "cpu" else DEVICE_TILE_BITS
        assert bits <= 2 * tile_bits  # columns of all runs fit into a tile
        self._y, self._bits = y, bits
        self._tile_bits = min(bits, tile_bits)
        self._num_rows = min(len(y), 1 << (tile_bits - self._tile_bits))  # of y, in one tile
        size = self._num_rows << self._tile_bits
        self._buffers = (y.new_empty(size), y.new_empty(size))
        chunks = {CHUNK_BITS, self._tile_bits % CHUNK_BITS, (bits - self._tile_bits) % CHUNK_BITS}
        self._powers = {k: _power(matrix, k, y.dtype, y.device) for k in chunks}
        self._integer = torch.int32 if y.dtype == torch.float32 else torch.int64
        # Shifting by them brings each of the 32 bits of a word to where floats keep their sign.
        first = torch.iinfo(self._integer).bits - 32
        num_signs = 1 << min(bits, WORD_BITS)
        self._shifts = torch.arange(
            first, first + num_signs, dtype=self._integer, device=y.device
        )  # (b,)

    def apply(self, windows: Sequence[Window], words: Sequence[Tensor] | None) -> None:
        """Transform the windows one after the other.

        Args:
            windows: Each with 2^k entries.
            words: Of the signs of each window, int32, shape (max(1, 2^(k - 5)),); None for D = I.
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
        """Some rows at a time, all windows."""
        masks: list[Tensor | None] = [
            None if table is None else self._unpack(table, self._shifts[:, None])
            for table in tables
        ]
        for rows in torch.split(self._y, self._num_rows):
            for window, mask in zip(windows, masks, strict=True):
                tile = rows.as_strided(
                    (len(rows), 2, window.half),
                    (rows.stride(0), window.stride, 1),
                    rows.storage_offset() + window.start,
                )
                self._transform(tile, self._bits, 1, before=mask, after=mask)

    def _transform_large(self, row: Tensor, window: Window, table: Tensor | None) -> None:
        """Low bits in runs of the window, then high bits in columns of all runs."""
        size = 1 << self._tile_bits
        num = 1 << (self._bits - self._tile_bits)  # of runs
        runs = row.as_strided(
            (2, num // 2, size), (window.stride, size, 1), row.storage_offset() + window.start
        )
        # The index of an entry has the digits (b, b', r', r), with b' or r' empty; (b, r') is the
        # number of its run, (b', r) its place there, and its sign bit b b' of word r' r.
        num_bits = min(num, 32)
        shifts = self._shifts.view(num_bits, -1, 1)  # (b, b', 1)
        words: Tensor | None = None if table is None else table.view(num // num_bits, -1)  # (r', r)
        mask: Tensor | None = None
        for index in range(num):
            if words is not None:
                bit, part = divmod(index, len(words))
                mask = self._unpack(words[part], shifts[bit])
            run = runs[index // (num // 2), index % (num // 2)]
            self._transform(run, self._tile_bits, 1, before=mask)
        width = min(size // num, 1 << (self._bits - WORD_BITS))
        for first in range(0, size, width):
            if words is not None:
                part, begin = divmod(first, words.shape[1])
                mask = self._unpack(words[:, begin : begin + width], shifts[:, part, None])
            columns = runs[..., first : first + width]
            self._transform(columns, self._bits - self._tile_bits, width, after=mask)

    def _unpack(self, words: Tensor, shifts: Tensor) -> Tensor:
        """Make a mask with the sign bit of the floats that get a minus: the shape of both, flat."""
        return (words << shifts).bitwise_and_(torch.iinfo(self._integer).min).view(-1)

    def _transform(
        self,
        tile: Tensor,
        bits: int,
        trail: int,
        *,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> None:
        """Transform one tile, seen as (..., 2^bits, trail), with sign flips before or after."""
        in_place = tile.is_contiguous() and bits > CHUNK_BITS
        if in_place:
            source = tile.view(-1)
        else:
            source = self._buffers[1][: tile.numel()]
            source.view(tile.shape).copy_(tile)
        if before is not None:
            _flip(source, before)
        for step, low in enumerate(range(0, bits, CHUNK_BITS)):
            chunk = min(CHUNK_BITS, bits - low)
            is_last = low + chunk == bits
            target = self._buffers[step % 2][: tile.numel()]
            if is_last and in_place:
                target = tile.view(-1)
            _multiply(self._powers[chunk], source, trail << low, out=target)
            source = target
        if after is not None:
            _flip(source, after)
        if not in_place:
            tile.copy_(source.view(tile.shape))


def _flip(x: Tensor, mask: Tensor) -> None:
    """Flip the signs (as a product with -1, but exact for every value) where the mask says so."""
    x.view(mask.dtype).view(-1, len(mask)).bitwise_xor_(mask)


def _multiply(matrix: Tensor, x: Tensor, stride: int, *, out: Tensor) -> None:
    """Multiply x, seen as (..., m, stride), with a matrix (m, m) along the middle dimension."""
    size = len(matrix)
    if stride == 1:
        torch.mm(x.view(-1, size), matrix.mT, out=out.view(-1, size))
    else:
        shape = (x.numel() // (size * stride), size, stride)
        torch.bmm(matrix.expand(shape[0], -1, -1), x.view(shape), out=out.view(shape))


@lru_cache(maxsize=256)  # small, and a copy to a GPU would wait for it
def _power(matrix: Matrix, exponent: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kronecker power of a 2x2 matrix, rounded once."""
    with torch.inference_mode(False):  # kept, it may be used in or out of inference mode
        power = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(exponent):
            power = torch.kron(power, torch.tensor(matrix, dtype=torch.float64))
        return power.to(device=device, dtype=dtype)
