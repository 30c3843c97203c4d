"""A vector so long that its windows are rotated across ranks."""

from collections.abc import Iterator

from torch import Tensor

from lightning_linf.functional.full_precision import full_float32_precision
from lightning_linf.functional.kronecker import Matrix, SignedKronecker, Window, mix_rows_
from lightning_linf.functional.rotation import plane_rotation, rotation_windows
from lightning_linf.functional.signs import flip_signs_
from lightning_linf.functional.strips import Strip, run
from lightning_linf.kernels import runs_kernels

_SPARE_BITS = 3  # 8 tiles or more for each rank: shares then differ by an eighth


class SplitVector:
    r"""Rotate a long vector of which every rank holds a share.

    A window of 2^k entries is seen as a matrix (2^a, 2^b), and :math:`M^{\otimes k}` as
    :math:`M^{\otimes a}` along its columns and :math:`M^{\otimes b}` along its rows, in any order.
    So each window takes two steps. In one of them a rank has some columns, whole, and in the other
    some rows; between them ranks exchange what they hold. Windows take turns in which is first, so
    that two steps in a row are of the same kind: shares by rows then hardly differ, as each rank
    has the rows of about its part of the whole vector.

    Several vectors, interleaved as the columns of a matrix are, may be rotated alike.

    Args:
        start: Number of the first entry in the vector that ranks share.
        length: Number of entries d of the vector that is rotated.
        unit: How many vectors are interleaved.
        num_ranks: Number of ranks W, at most sqrt(d).
        seed: As for :func:`~lightning_linf.functional.rotation.rotate`.
        strength: As there.
        inverse: As there.
    """

    def __init__(
        self, start: int, length: int, unit: int, num_ranks: int,
        *, seed: int, strength: float, inverse: bool,
    ) -> None:  # fmt: skip
        self._start, self._length, self._unit = start, length, unit
        self._num_ranks = num_ranks
        self._seed, self._strength, self._inverse = seed, strength, inverse
        windows = list(enumerate(rotation_windows(length)))
        self._windows = windows[:: -1 if inverse else 1]
        self._bits = windows[0][1].bits
        column_bits = min((num_ranks - 1).bit_length() + _SPARE_BITS, self._bits // 2)
        self._num_rows, self._row = 1 << column_bits, 1 << (self._bits - column_bits)

    @property
    def num_steps(self) -> int:
        """Number of steps, two for each window."""
        return 2 * len(self._windows)

    def strips(self, step: int, rank: int) -> list[Strip]:
        """Give what a rank has in a step."""
        _, window = self._windows[step // 2]
        if _is_of_rows(step):
            low, high = self._cuts(window, rank)
            parts = [run(low, high)]
        else:
            low, high = self._columns(rank)
            parts = [
                Strip(start + low, self._num_rows // 2, self._row, high - low)
                for start in _starts(window)
            ]
            parts += self._outside(window, rank)
        unit = self._unit
        return [
            Strip(self._start + s.start * unit, s.rows, s.stride * unit, s.width * unit)
            for s in parts
            if s.size
        ]

    def transform_(self, y: Tensor, step: int, rank: int, *, squared: bool) -> None:
        """Do a step of what a rank has in it, (n,), float32 or float64, in place."""
        stream, window = self._windows[step // 2]
        is_first = step % 2 == 0
        matrix = plane_rotation(
            self._length, self._strength, inverse=self._inverse, squared=squared
        )
        entries = y.view(-1, self._unit)
        of_rows = _is_of_rows(step)
        stretches = list(self._in_rows(window, rank) if of_rows else self._in_columns(rank))

        def flip_signs() -> None:
            if not squared:
                flip_signs_(entries, stretches, self._bits, seed=self._seed, stream=stream)

        if is_first:
            flip_signs()
        with full_float32_precision():
            if of_rows:
                for first, _, length in stretches:
                    self._mix_along_rows_(entries[first : first + length], matrix)
            elif stretches:
                size = sum(length for *_, length in stretches)
                mix_rows_(entries[:size].view(self._num_rows, -1), matrix)
        if not is_first:
            flip_signs()

    def _mix_along_rows_(self, entries: Tensor, matrix: Matrix) -> None:
        """Mix each row of (rows, 2^b), given as entries (rows 2^b, unit)."""
        if self._unit == 1:
            _mix_along_rows_(entries.view(-1, self._row), matrix)
            return
        for row in entries.view(-1, self._row, self._unit):
            turned = row.mT.contiguous()  # (unit, 2^b)
            _mix_along_rows_(turned, matrix)
            row.copy_(turned.mT)

    def _in_rows(self, window: Window, rank: int) -> Iterator[tuple[int, int, int]]:
        """Yield the rank's entries of the window: place in its share, number, and how many."""
        low, high = self._cuts(window, rank)
        for number, start in enumerate(_starts(window)):
            first, last = max(low, start), min(high, start + window.half)
            if first < last:
                yield first - low, number * window.half + first - start, last - first

    def _in_columns(self, rank: int) -> Iterator[tuple[int, int, int]]:
        low, high = self._columns(rank)
        if low < high:
            for row in range(self._num_rows):
                yield row * (high - low), row * self._row + low, high - low

    def _columns(self, rank: int) -> tuple[int, int]:
        return (
            self._row * rank // self._num_ranks,
            self._row * (rank + 1) // self._num_ranks,
        )

    def _cuts(self, window: Window, rank: int) -> tuple[int, int]:
        """Cut the vector into equal parts, up to the next borders of rows."""
        cuts = []
        for each in (rank, rank + 1):
            cut = self._length * each // self._num_ranks
            for start in _starts(window):
                if start <= cut < start + window.half:
                    cut = start + (cut - start + self._row // 2) // self._row * self._row
                    break
            cuts.append(cut)
        return cuts[0], cuts[1]

    def _outside(self, window: Window, rank: int) -> Iterator[Strip]:
        """Yield the rank's share of the entries that are not in the window."""
        first, second = _starts(window)
        gaps = [(0, first), (first + window.half, second), (second + window.half, self._length)]
        size = sum(stop - start for start, stop in gaps)
        low, high = (size * each // self._num_ranks for each in (rank, rank + 1))
        passed = 0
        for start, stop in gaps:
            begin, end = max(low, passed), min(high, passed + stop - start)
            if begin < end:
                yield run(start + begin - passed, start + end - passed)
            passed += stop - start


def _is_of_rows(step: int) -> bool:
    return step % 4 in (1, 2)  # columns, rows; rows, columns; and so on


def _starts(window: Window) -> tuple[int, int]:
    return window.start, window.start + window.stride


def _mix_along_rows_(rows: Tensor, matrix: Matrix) -> None:
    """Multiply every row (2^b,) with a Kronecker power, in place."""
    half = rows.shape[1] // 2
    window = Window(0, half, half)
    if runs_kernels(rows.device):
        from lightning_linf.kernels.kronecker import signed_kronecker_

        signed_kronecker_(rows, [window], matrix, None)
    else:
        SignedKronecker(window.bits, matrix, rows).apply([window], None)
