"""Runs: stretches of neighbouring rows of a tensor, whose sums are kept instead of all rows.

Where vectors are shards, a run may have rows on several ranks. Runs are those of the whole tensors,
and rows are numbered as a shard has them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.random import chunk_size
from lightning_linf.functional.vector_shards import stretches_here, sum_over_shards

RUNS_PER_TENSOR = 64  # rows of one tensor may differ a thousandfold, neighbours less


class RunPiece(NamedTuple):
    """A stretch of rows that is one run, or part of it, or several whole ones of equal length."""

    rows: slice
    runs: slice


class RowParts(NamedTuple):
    """What is needed of what each row adds to an estimate, by runs. Shapes: (R,)."""

    sums: Tensor
    squares: Tensor  # sums of squares
    counts: Tensor  # of the rows that add anything


def run_counts(sizes: Sequence[int]) -> list[int]:
    """Count the runs of each tensor, at most ``RUNS_PER_TENSOR`` stretches of neighbouring rows.

    All runs of a tensor but the last one are equally long: one of 130 rows has 43 runs of 3 rows
    and one of 1 row.
    """
    return [-(-size // _width(size)) for size in sizes]


def run_starts(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Give the first row here of each run, and the number of rows here. Shape: (R + 1,), int64."""
    return _run_starts(tuple(sizes), tuple(stretches_here(sizes)), device)


@lru_cache(maxsize=8)  # of few landscapes, and copying it to a GPU would wait for it
def _run_starts(
    sizes: tuple[int, ...], stretches: tuple[range, ...], device: torch.device
) -> Tensor:
    starts: list[int] = []
    first = 0
    for size, here in zip(sizes, stretches, strict=True):
        runs = range(0, size, _width(size))
        starts += [first + min(max(row - here.start, 0), len(here)) for row in runs]
        first += len(here)
    with torch.inference_mode(False):  # the cache may be used in or out of inference mode
        return torch.tensor([*starts, first], device=device)


def run_pieces(sizes: Sequence[int], device: torch.device) -> Iterator[RunPiece]:
    """Cut all rows that are here into pieces of at most ``chunk_size`` rows, in order."""
    first_row = first_run = 0
    stretches = stretches_here(sizes)
    for size, count, here in zip(sizes, run_counts(sizes), stretches, strict=True):
        width = _width(size)
        for rows in _cut_at_runs(here, width, chunk_size(device, width)):
            runs = slice(first_run + rows.start // width, first_run + -(-rows.stop // width))
            for begin in range(rows.start, rows.stop, chunk_size(device)):
                end = min(begin + chunk_size(device), rows.stop)
                offset = first_row - here.start
                yield RunPiece(slice(offset + begin, offset + end), runs)
        first_row, first_run = first_row + len(here), first_run + count


def _cut_at_runs(rows: range, width: int, step: int) -> Iterator[range]:
    """Cut rows into a part of a run, up to ``step`` rows of whole runs at a time, and a part."""
    start = rows.start
    while start < rows.stop:
        next_run = start // width * width + width
        whole = rows.stop // width * width
        stop = min(start + step, whole) if start % width == 0 else next_run
        stop = min(stop if stop > start else rows.stop, rows.stop)
        yield range(start, stop)
        start = stop


def add_to_runs(sums: Tensor, values: Tensor, piece: RunPiece) -> None:
    """Add values (rows,) of a piece, in place, to the sums (R,) of its runs."""
    num_runs = piece.runs.stop - piece.runs.start
    sums[piece.runs] += values.view(num_runs, -1).sum(dim=1)


def row_parts(part_of: Callable[[slice], Tensor], sizes: Sequence[int], like: Tensor) -> RowParts:
    """Sum what rows add to an estimate, piece by piece, and over all ranks that have rows.

    Args:
        part_of: Computes what rows that are here add, at least 0 each; a new tensor.
        sizes: Number of rows of each tensor. Length T, sum d.
        like: A tensor with the dtype and device of the sums.
    """
    sums = like.new_zeros(len(RowParts._fields), sum(run_counts(sizes)))
    parts = RowParts(*sums)
    for piece in run_pieces(sizes, like.device):
        values = part_of(piece.rows)
        add_to_runs(parts.sums, values, piece)
        add_to_runs(parts.squares, values.square(), piece)
        add_to_runs(parts.counts, values.sign_(), piece)
    return RowParts(*sum_over_shards(sums))


def tensor_sums(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add the values of the runs of each tensor. Shapes: (..., R) -> (..., T)."""
    counts = torch.tensor(run_counts(sizes))
    tensor_of_run = torch.arange(len(counts)).repeat_interleave(counts).to(values.device)
    zeros = values.new_zeros(*values.shape[:-1], len(sizes))
    return zeros.index_add(-1, tensor_of_run, values)


def _width(size: int) -> int:
    return max(1, -(-size // RUNS_PER_TENSOR))
