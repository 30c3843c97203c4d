"""Runs: stretches of neighbouring rows of a tensor, whose sums are kept instead of all rows."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.random import chunk_size

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


@lru_cache(maxsize=8)  # of few landscapes, and copying it to a GPU would wait for it
def run_starts(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Give the first row of each run, and d. Shape: (R + 1,), int64."""
    starts: list[int] = []
    first = 0
    for size in sizes:
        starts += range(first, first + size, _width(size))
        first += size
    with torch.inference_mode(False):  # the cache may be used in or out of inference mode
        return torch.tensor([*starts, first], device=device)


def run_pieces(sizes: Sequence[int], device: torch.device) -> Iterator[RunPiece]:
    """Cut all rows into pieces of at most ``chunk_size`` rows, in order."""
    first_row = first_run = 0
    for size, count in zip(sizes, run_counts(sizes), strict=True):
        width = _width(size)
        step = chunk_size(device, width)  # whole runs, or one that is longer than a chunk
        whole = size // width * width
        for start in [*range(0, whole, step), *([whole] if whole < size else [])]:
            stop = min(start + step, whole if start < whole else size)
            runs = slice(first_run + start // width, first_run + -(-stop // width))
            for begin in range(start, stop, chunk_size(device)):
                end = min(begin + chunk_size(device), stop)
                yield RunPiece(slice(first_row + begin, first_row + end), runs)
        first_row, first_run = first_row + size, first_run + count


def add_to_runs(sums: Tensor, values: Tensor, piece: RunPiece) -> None:
    """Add values (rows,) of a piece, in place, to the sums (R,) of its runs."""
    num_runs = piece.runs.stop - piece.runs.start
    sums[piece.runs] += values.view(num_runs, -1).sum(dim=1)


def row_parts(part_of: Callable[[slice], Tensor], sizes: Sequence[int], like: Tensor) -> RowParts:
    """Sum what rows add to an estimate, piece by piece.

    Args:
        part_of: Computes what rows add, at least 0 each; a new tensor.
        sizes: Number of rows of each tensor. Length T, sum d.
        like: A tensor with the dtype and device of the sums.
    """
    parts = RowParts(*(like.new_zeros(sum(run_counts(sizes))) for _ in RowParts._fields))
    for piece in run_pieces(sizes, like.device):
        values = part_of(piece.rows)
        add_to_runs(parts.sums, values, piece)
        add_to_runs(parts.squares, values.square(), piece)
        add_to_runs(parts.counts, values.sign_(), piece)
    return parts


def tensor_sums(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add the values of the runs of each tensor. Shapes: (..., R) -> (..., T)."""
    counts = torch.tensor(run_counts(sizes))
    tensor_of_run = torch.arange(len(counts)).repeat_interleave(counts).to(values.device)
    zeros = values.new_zeros(*values.shape[:-1], len(sizes))
    return zeros.index_add(-1, tensor_of_run, values)


def _width(size: int) -> int:
    return max(1, -(-size // RUNS_PER_TENSOR))
