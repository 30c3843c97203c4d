"""Pieces of a partition cover each coordinate once, in order, with its own block."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_linf.functional import LabelledBlocks
from lightning_linf.functional.blocks import sums_of_blocks
from lightning_linf.partition import Partition


def module():
    attention = nn.MultiheadAttention(8, 2)
    return nn.Sequential(nn.Linear(7, 5), nn.Conv2d(3, 4, 3), attention, nn.LayerNorm(6))


def by_entry(name, p):
    return torch.arange(p.numel()).remainder(3).view(p.shape)


def partitions():
    names = ("coordinate", "row", "column", "head", "tensor", "module", "global")
    made = [Partition.of(module(), name) for name in names]
    return [*made, Partition.by_function(module(), by_entry)]


@pytest.mark.parametrize("most", [1, 2, 10, 1000])
@pytest.mark.parametrize("partition", partitions(), ids=lambda p: p.name)
def test_pieces_give_the_sums_and_values_of_the_whole(partition, most):
    values = torch.randint(-99, 99, (partition.num_params,))
    sums = torch.zeros(partition.num_blocks, dtype=torch.int64)
    numbers, end = torch.arange(partition.num_blocks), 0
    for part, piece in partition.pieces(most):
        assert part.start == end
        assert part.stop - part.start <= most
        end = part.stop
        own = slice(piece.first, piece.first + piece.num_blocks)
        sums[own] += piece.block_sum(values[part])
        assert torch.equal(piece.expand(numbers[own]), partition.expand(numbers)[part])
    assert end == partition.num_params
    assert torch.equal(sums, partition.block_sum(values))


def test_sums_in_pieces_are_those_of_a_copy_in_float64():
    x, labels = torch.randn(300_000), torch.randint(9, (300_000,))  # several pieces
    expected = LabelledBlocks(labels).block_sum(x.double().square())
    sums = sums_of_blocks(torch.square, x, LabelledBlocks(labels))
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0.0)  # the order of the sum


@pytest.mark.parametrize("num_cuts", [1, 2, 5, 40])
@pytest.mark.parametrize("partition", partitions(), ids=lambda p: p.name)
def test_stretches_of_tensors_keep_the_blocks_of_their_entries(partition, num_cuts):
    numbers = torch.arange(partition.num_blocks)
    of_entries = partition.expand(numbers).split([s.numel() for s in partition.shapes])
    for layout, expected in zip(partition.layouts, of_entries, strict=True):
        cuts = torch.randint(len(expected) + 1, (num_cuts,)).sort().values.tolist()
        for start, stop in pairwise([0, *cuts, len(expected)]):
            pieces = list(layout.stretch(range(start, stop)))
            assert sum(count for count, _ in pieces) == stop - start
            found = [
                piece.expand(numbers[piece.first : piece.first + piece.num_blocks])
                for _, piece in pieces
            ]
            assert torch.equal(torch.cat([numbers[:0], *found]), expected[start:stop])
