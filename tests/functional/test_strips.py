"""Strips of a vector against lists of their numbers, and exchanges between any two layouts."""

import random

import pytest
import torch
from support.rank_threads import Ranks

from lightning_linf.functional.exchange import Exchange
from lightning_linf.functional.strips import Strip, common, run, share, strips_of_box, total


def numbers(*strips):
    return [
        s.start + i * s.stride + j for s in strips for i in range(s.rows) for j in range(s.width)
    ]


def drawn(like=None):
    width = random.randint(1, 6)
    stride = width + random.choice([0, 0, 1, 2, 5])
    if like is not None:
        stride = max(like.stride, width)
    return Strip(random.randint(0, 30), random.randint(1, 7), stride, width)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)


def test_a_strip_is_runs_of_equal_length_and_distance():
    assert numbers(Strip(2, 3, 10, 4)) == [*range(2, 6), *range(12, 16), *range(22, 26)]
    assert (Strip(2, 3, 10, 4).size, Strip(2, 3, 10, 4).stop) == (12, 26)
    assert numbers(run(3, 7)) == [3, 4, 5, 6]
    assert total([run(3, 7), Strip(0, 2, 5, 3)]) == 10


@pytest.mark.parametrize("alike", [False, True])
def test_what_two_strips_have_in_common_is_found_in_both(alike):
    for _ in range(3_000):
        a = drawn()
        b = drawn(a if alike else None)
        parts = list(common(a, b))
        assert sorted(numbers(*parts)) == sorted({*numbers(a)} & {*numbers(b)})
        for outer in (a, b):
            held = torch.tensor([-1, -1, *numbers(outer)])
            for part in parts:
                assert part.view(held, 2, outer).flatten().tolist() == numbers(part)


def test_few_strips_say_what_is_common():
    matrix = Strip(5, 1_000, 100, 30)
    assert len(list(common(matrix, run(1_017, 50_020)))) == 3
    assert len(list(common(matrix, Strip(17, 900, 100, 95)))) <= 2
    assert list(common(matrix, run(40, 100))) == []


def test_boxes_of_tensors_are_strips_in_their_order():
    for _ in range(1_000):
        shape = [random.randint(1, 4) for _ in range(random.randint(0, 4))]
        offsets = [random.randint(0, size - 1) for size in shape]
        sizes = [random.randint(0, n - first) for n, first in zip(shape, offsets, strict=True)]
        for dim in range(len(shape)):
            if random.random() < 0.4:
                offsets[dim], sizes[dim] = 0, shape[dim]
        whole = torch.arange(7, 7 + torch.Size(shape).numel()).view(shape)
        inside = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
        strips = strips_of_box(shape, offsets, sizes, first=7)
        assert numbers(*strips) == whole[inside].flatten().tolist()
    assert strips_of_box((8, 3, 4), (2, 0, 0), (3, 3, 4)) == [run(24, 60)]  # Shard(0)
    assert strips_of_box((8, 12), (0, 3), (8, 6)) == [Strip(3, 8, 12, 6)]  # Shard(1)


def test_holders_of_copies_share_them():
    for _ in range(300):
        strips, num_parts = (
            [drawn()._replace(start=200 * i) for i in range(3)],
            random.randint(1, 5),
        )
        parts = [share(strips, part, num_parts) for part in range(num_parts)]
        found = [number for part in parts for number in numbers(*part)]
        assert sorted(found) == numbers(*strips)


def layout(num_ranks, dim, copies):
    """Deal single numbers and runs of 0, ..., d-1 to ranks at random, each to one or several."""
    held, start = [[] for _ in range(num_ranks)], 0
    while start < dim:
        size = min(dim - start, random.choice([1, 2, 30]))
        for rank in random.sample(range(num_ranks), random.randint(1, 1 + copies)):
            held[rank].append(run(start, start + size))
        start += size
    for strips in held:
        random.shuffle(strips)
    return held


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_an_exchange_brings_every_entry_to_all_who_shall_have_it(num_ranks):
    ranks = Ranks(num_ranks)
    for _ in range(10):
        source, target = layout(num_ranks, 200, 0), layout(num_ranks, 200, num_ranks - 1)

        def on_rank(rank, all_to_all, source=source, target=target):
            held = torch.tensor(numbers(*source[rank]), dtype=torch.float64)
            return Exchange(source, target, rank)(held, all_to_all)

        for rank, result in enumerate(ranks.run(on_rank)):
            assert result.tolist() == numbers(*target[rank])


def test_between_equal_layouts_nothing_is_sent():
    held = [[run(0, 3)], [run(3, 7), run(7, 8)]]
    x = torch.arange(3.0)
    assert Exchange(held, [list(each) for each in held], 0)(x, None) is x
