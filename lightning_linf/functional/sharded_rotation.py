"""Rotations of vectors that ranks share, in memory and work for a rank's share alone."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from torch import Tensor

from lightning_linf.functional.exchange import AllToAll, Exchange
from lightning_linf.functional.rotation import rotate_
from lightning_linf.functional.split_vector import SplitVector
from lightning_linf.functional.strips import Layout, Strip, run

_FEW = 1 << 12  # a vector of so few entries is not worth splitting


class Vectors(NamedTuple):
    """Vectors that are rotated alike: the rows of a matrix, or its columns.

    (rows, length) or (length, columns): one of ``rows`` and ``columns`` is 1.
    """

    start: int  # number of the first entry of the matrix
    rows: int
    length: int
    columns: int
    seed: int


class _Whole(NamedTuple):
    """Vectors that one rank has whole."""

    vectors: Vectors
    strip: Strip


class ShardedRotation:
    """Rotate vectors that ranks share, each as :func:`~lightning_linf.functional.rotate` does.

    Vectors of up to a quarter of a rank's fair share are rotated whole: by the rank that has them
    whole already, or dealt out. Longer ones are split (:class:`SplitVector`).

    Args:
        vectors: All entries belong to one of them.
        parts: What each rank sends: every entry once.
        layout: What each rank is to have in the end.
        rank: Of this process.
        strength: As for :func:`~lightning_linf.functional.rotate`.
        inverse: As there.

    Source:
        The split of a transform into those of rows and columns, with a transposition between them,
        is that of Fourier transforms on distributed memory (Van Loan, Computational Frameworks for
        the FFT, 1992, chapter 3). Cost: for d entries in all on W ranks, memory for about 2 d / W
        numbers beside the argument, and as many flops as for one process, divided by W. A rank
        sends up to 9 d / W numbers, or 5 d / W where d is a power of two.
    """

    def __init__(
        self, vectors: Sequence[Vectors], parts: Layout, layout: Layout, rank: int,
        *, strength: float, inverse: bool,
    ) -> None:  # fmt: skip
        num_ranks = len(parts)
        most = sum(each.rows * each.length * each.columns for each in vectors)
        if num_ranks > 1:
            most = max(_FEW, num_ranks**2, most // (4 * num_ranks))
        self._strength, self._inverse, self._rank = strength, inverse, rank
        self._split = [
            SplitVector(
                each.start + number * each.length, each.length, each.columns, num_ranks,
                seed=each.seed, strength=strength, inverse=inverse,
            )
            for each in vectors
            if each.length > most
            for number in range(each.rows)
        ]  # fmt: skip
        dealt = _deal([each for each in vectors if each.length <= most], parts)
        self._whole = dealt[rank]
        self.num_steps = max([1, *(each.num_steps for each in self._split)])
        layouts = [
            [[*(w.strip for w in dealt[r]), *self._split_strips(step, r)] for r in range(num_ranks)]
            for step in range(self.num_steps)
        ]
        self.exchanges = [Exchange(*each, rank) for each in pairwise([parts, *layouts, layout])]

    def __call__(
        self, x: Tensor, all_to_all: AllToAll, *, squared: bool, out: Tensor | None = None
    ) -> Tensor:
        """Rotate what this rank has, (n,), float32 or float64. Called by all ranks together.

        Args:
            x: What this rank sends.
            all_to_all: How.
            squared: Do what :func:`~lightning_linf.functional.rotation.rotate_squared` does.
            out: Where to put the result; it may be ``x``.
        """
        y: Tensor | None = x.clone() if self.exchanges[0].is_trivial and out is not x else x
        for step, exchange in enumerate(self.exchanges):
            assert y is not None
            is_last = step == self.num_steps
            if not exchange.is_trivial:
                packed = exchange.pack(y)
                y = None  # of these vectors no more than two are needed at any time
                received = all_to_all(packed, *exchange.counts)
                del packed
                y = exchange.unpack(received, out if is_last else None)
                del received
            elif is_last and out is not None and out is not y:
                y = out.copy_(y)
            if not is_last:
                self._transform_(y, step, squared)
        assert y is not None
        return y

    def _transform_(self, y: Tensor, step: int, squared: bool) -> None:
        first = 0
        for vectors, strip in self._whole:
            if step == 0:
                self._rotate_(y[first : first + strip.size], vectors, squared)
            first += strip.size
        for split in self._split:
            size = sum(strip.size for strip in split.strips(_last(split, step), self._rank))
            if step < split.num_steps:
                split.transform_(y[first : first + size], step, self._rank, squared=squared)
            first += size

    def _rotate_(self, y: Tensor, vectors: Vectors, squared: bool) -> None:
        is_turned = vectors.columns > 1
        rows = (
            y.view(vectors.length, -1).mT.contiguous() if is_turned else y.view(-1, vectors.length)
        )
        rotate_(
            rows, seed=vectors.seed, strength=self._strength, inverse=self._inverse, squared=squared
        )
        if is_turned:
            y.view(vectors.length, -1).copy_(rows.mT)

    def _split_strips(self, step: int, rank: int) -> Iterator[Strip]:
        return chain.from_iterable(each.strips(_last(each, step), rank) for each in self._split)


def _last(split: SplitVector, step: int) -> int:
    """The step whose strips a vector has in a step of all; after its last it stays where it is."""
    return min(step, split.num_steps - 1)


def _deal(all_vectors: Sequence[Vectors], parts: Layout) -> list[list[_Whole]]:
    """Give every vector to one rank: to that which has it, or such that shares are equal."""
    dealt: list[list[_Whole]] = [[] for _ in parts]
    homes = sorted(
        (strip.start, strip.stop, rank)
        for rank, strips in enumerate(parts)
        for strip in strips
        if strip.is_one_run()
    )
    homeless: list[tuple[Vectors, int, int]] = []  # the vectors from one number to another
    for vectors in all_vectors:
        if vectors.columns > 1:
            homeless.append((vectors, 0, vectors.columns))
            continue
        first = 0
        for rank, low, high in _at_home(vectors, homes):
            dealt[rank].append(_Whole(vectors, _strip(vectors, low, high)))
            homeless.append((vectors, first, low))
            first = high
        homeless.append((vectors, first, vectors.rows))
    for rank, vectors, low, high in _shares(homeless, len(parts)):
        dealt[rank].append(_Whole(vectors, _strip(vectors, low, high)))
    return dealt


def _at_home(
    vectors: Vectors, homes: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Yield ranks that have vectors whole, and from which number to which."""
    start, num_rows, length = vectors[:3]
    stop = start + num_rows * length
    for begin, end, rank in homes[max(0, bisect_right(homes, (start, stop, 0)) - 1) :]:
        if begin >= stop:
            return
        low = max(0, -(-(begin - start) // length))
        high = min(num_rows, (end - start) // length)
        if low < high:
            yield rank, low, high


def _shares(
    stretches: Sequence[tuple[Vectors, int, int]], num_ranks: int
) -> Iterator[tuple[int, Vectors, int, int]]:
    """Cut stretches of vectors into one share for each rank: a vector goes by its middle."""
    whole = sum(vectors.length * (high - low) for vectors, low, high in stretches)
    passed = 0
    for vectors, low, high in stretches:
        length, count = vectors.length, high - low
        begin = 0
        rank = passed * num_ranks // max(1, whole)
        while begin < count:
            # The first vector whose middle, passed + (i + 1/2) length, lies in the next share.
            border = 2 * ((rank + 1) * whole - passed * num_ranks) - length * num_ranks
            end = min(count, max(begin, -(-border // (2 * length * num_ranks))))
            if begin < end:
                yield rank, vectors, low + begin, low + end
            begin, rank = end, rank + 1
        passed += length * count


def _strip(vectors: Vectors, low: int, high: int) -> Strip:
    """Give the entries of the vectors from one number to another."""
    start, _, length, columns, _ = vectors
    if columns == 1:
        return run(start + low * length, start + high * length)
    return Strip(start + low, length, columns, high - low)
