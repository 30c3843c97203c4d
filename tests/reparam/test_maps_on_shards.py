"""Maps of vectors that ranks share, against the same maps of whole vectors. Ranks are threads."""

import copy
import pickle

import pytest
import torch
from support.coordinates import Dense
from support.rank_threads import Ranks

from lightning_linf.functional import sharded_rotation
from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.strips import run, strips_of_box
from lightning_linf.functional.vector_shards import VectorShards
from lightning_linf.optim.reparameterized.coordinates import Coordinates
from lightning_linf.reparam import Permutation, Rotation, Scaling

SHAPES = [torch.Size(s) for s in [(37, 5), (90,), (), (3, 2, 5, 3), (1, 300), (0, 3), (500, 2)]]
SIZES = [shape.numel() for shape in SHAPES]
NAMES = [f"p{i}" for i in range(len(SHAPES))]
DIM = sum(SIZES)
MAPS = {
    **{scope: Rotation(scope) for scope in ("global", "tensor", "row", "column")},
    **{f"{scope}, weak": Rotation(scope, strength=0.3) for scope in ("global", "column")},
    "selected": Rotation(only="[0356]"),
    "permutation": Permutation(seed=3),
    "permutation of tensors": Permutation("tensor", only="[146]"),
    "number": Scaling(2.0, only="[13]"),
    "factors": Scaling(1 + torch.arange(DIM, dtype=torch.float64) / DIM),
    "product": Scaling(0.5) @ Rotation("row") @ Permutation() @ Rotation(seed=1, only="[0-3]"),
    "identity": Rotation(strength=0.0),
}
PRODUCTS = {
    "A": lambda bound, x: bound.apply(x),
    "A^T": lambda bound, x: bound.apply_transpose(x),
    "squared": lambda bound, x: bound.apply_transpose_squared(x),
    "inverse": lambda bound, x: bound.inverse().apply(x),
    "squared, inverse": lambda bound, x: bound.inverse().apply_transpose_squared(x),
    "in place": lambda bound, x: bound.apply_(x.clone()),
    "A^T in place": lambda bound, x: bound.apply_transpose_(x.clone()),
}


def landscape(rank, num_ranks, all_to_all, sizes=SIZES):
    """Hold what a landscape's vectors give to a rank."""
    shards = VectorShards(sizes, rank, num_ranks, None, None)
    return Holdings.of_shards(shards, all_to_all)


def columns_and_copies(rank, num_ranks, all_to_all):
    """Hold some of the columns of matrices, and copies of all other tensors."""
    held = []
    for each in range(num_ranks):
        of_rank = []
        for shape in SHAPES:
            cut = [0] * len(shape)
            sizes = list(shape)
            if len(shape) > 1:
                low, high = (shape[1] * i // num_ranks for i in (each, each + 1))
                cut[1], sizes[1] = low, high - low
            of_rank.append(strips_of_box(shape, cut, sizes))
        held.append(of_rank)
    return Holdings(SIZES, held, rank, all_to_all)


def replicas_of_halves(rank, num_ranks, all_to_all):
    """Hold one half, as do all other ranks of the same parity."""
    halves = [
        [[run(*ends)] if ends[0] < ends[1] else [] for ends in of_half]
        for of_half in ([(0, n // 2) for n in SIZES], [(n // 2, n) for n in SIZES])
    ]
    return Holdings(SIZES, [halves[each % 2] for each in range(num_ranks)], rank, all_to_all)


LAYOUTS = {"landscape": landscape, "columns": columns_and_copies, "replicas": replicas_of_halves}


@pytest.fixture
def split_often(monkeypatch):
    monkeypatch.setattr(sharded_rotation, "_FEW", 4)


def assert_the_same(whole, hold, num_ranks, x, products=PRODUCTS, **tolerance):
    expected = {name: product(whole, x.clone()) for name, product in products.items()}

    def on_rank(rank, all_to_all):
        holdings = hold(rank, num_ranks, all_to_all)
        bound = whole.on_shards(holdings)
        shard = holdings.shard_of(x)
        found = {name: product(bound, shard) for name, product in products.items()}
        assert torch.equal(shard, holdings.shard_of(x))
        return {name: (y, holdings.shard_of(expected[name])) for name, y in found.items()}

    for found in Ranks(num_ranks).run(on_rank):
        for name, (ours, theirs) in found.items():
            torch.testing.assert_close(ours, theirs, msg=name, **tolerance)


@pytest.mark.usefixtures("split_often")
@pytest.mark.parametrize(
    "layout",
    [
        "landscape",
        *(pytest.param(each, marks=pytest.mark.slow) for each in LAYOUTS if each != "landscape"),
    ],
)
@pytest.mark.parametrize("name", MAPS)
def test_products_are_those_of_one_process(name, layout):
    whole = MAPS[name].bind(SHAPES, NAMES)
    x = torch.randn(DIM, dtype=torch.float64)
    assert_the_same(whole, LAYOUTS[layout], 3, x, rtol=1e-12, atol=1e-12)


def test_maps_that_nobody_knows_of_gather_whole_vectors():
    shapes = [torch.Size([7, 3]), torch.Size([4])]
    whole = (Dense(only="weight") @ Rotation()).bind(shapes, ["weight", "bias"])

    def hold(rank, num_ranks, all_to_all):
        return landscape(rank, num_ranks, all_to_all, [21, 4])

    x = torch.randn(25, dtype=torch.float64)
    assert_the_same(whole, hold, 3, x, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("split_often")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_vectors_are_rotated_in_float32(dtype):
    whole = Rotation("global").bind(SHAPES)
    x = torch.randn(DIM).to(dtype)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.02}
    )
    products = {name: PRODUCTS[name] for name in ("A", "A^T", "squared")}
    assert_the_same(whole, landscape, 2, x, products, **tolerance)


@pytest.mark.usefixtures("split_often")
@pytest.mark.parametrize("num_ranks", [2, 5])
@pytest.mark.parametrize("dim", [64, 65, 127, 255, 256, 5000])
def test_windows_of_any_length_are_split(dim, num_ranks):
    whole = Rotation(strength=0.8).bind([torch.Size([dim])])

    def hold(rank, num_ranks, all_to_all):
        return landscape(rank, num_ranks, all_to_all, [dim])

    x = torch.randn(dim, dtype=torch.float64)
    products = {name: PRODUCTS[name] for name in ("A", "A^T")}
    assert_the_same(whole, hold, num_ranks, x, products, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dim", "most"), [(1 << 16, 4), (100_000, 9)])
def test_a_rank_sends_few_shards_and_has_its_share_in_every_step(dim, most):
    num_ranks = 4
    whole = Rotation().bind([torch.Size([dim])])
    ranks = Ranks(num_ranks)
    sizes = []

    def on_rank(rank, all_to_all):
        bound = whole.on_shards(landscape(rank, num_ranks, all_to_all, [dim]))
        bound.apply(torch.ones(bound.num_params))
        (plan,) = bound._plans.values()
        sizes.extend(exchange.num_entries for exchange in plan.exchanges)

    ranks.run(on_rank)
    assert ranks.num_messages == [most] * num_ranks
    assert max(ranks.num_sent) < most * dim / num_ranks
    assert max(sizes) < 1.2 * dim / num_ranks


def test_rows_that_a_rank_has_whole_are_not_sent():
    shapes = [torch.Size([8, 100]), torch.Size([40, 30])]
    whole = Rotation("row").bind(shapes)
    ranks = Ranks(4)

    def on_rank(rank, all_to_all):
        holdings = landscape(rank, 4, all_to_all, [shape.numel() for shape in shapes])
        return whole.on_shards(holdings).apply(torch.ones(holdings.num_local))

    ranks.run(on_rank)
    assert ranks.num_messages == [0] * 4


@pytest.mark.usefixtures("split_often")
def test_copies_are_equal_on_all_ranks_to_the_last_bit():
    whole = Rotation().bind(SHAPES)
    x = torch.randn(DIM)

    def on_rank(rank, all_to_all):
        holdings = columns_and_copies(rank, 3, all_to_all)
        return whole.on_shards(holdings).apply(holdings.shard_of(x)).split(holdings.local_sizes)

    first, *others = Ranks(3).run(on_rank)
    for other in others:
        assert torch.equal(first[1], other[1])
        assert torch.equal(first[2], other[2])


def test_coordinates_of_an_optimizer_are_known_on_shards():
    parameters = [torch.zeros(shape) for shape in SHAPES]
    chosen = [6, 0, 1]  # in another order than that of the vector
    bound = Rotation().bind([SHAPES[i] for i in chosen])
    coordinates = Coordinates(parameters, [([parameters[i] for i in chosen], bound)])
    products = {name: PRODUCTS[name] for name in ("A", "A^T")}
    x = torch.randn(DIM, dtype=torch.float64)
    assert_the_same(coordinates, landscape, 3, x, products, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="expected holdings of tensors of"):
        coordinates.on_shards(landscape(0, 2, None, [3, 4]))


def test_where_everything_is_whole_the_map_stays():
    whole = Rotation().bind(SHAPES)
    assert whole.on_shards(landscape(0, 1, None)) is whole
    copies = Holdings([5], [[[run(0, 5)]]] * 2, 0, None)
    bound = Rotation().bind([torch.Size([5])])
    assert bound.on_shards(copies) is bound


def test_holdings_of_another_vector_are_refused():
    with pytest.raises(ValueError, match=f"holdings of a vector of {DIM} entries, got 7"):
        Rotation().bind(SHAPES).on_shards(landscape(0, 2, None, [7]))
    bound = Rotation().bind(SHAPES).on_shards(landscape(0, 2, None))
    with pytest.raises(ValueError, match=rf"vector of shape \({bound.num_params},\)"):
        bound.apply(torch.ones(DIM))


def test_a_map_on_shards_can_be_copied():
    bound = (Rotation() @ Permutation()).bind(SHAPES).on_shards(landscape(0, 2, max))
    for other in (copy.deepcopy(bound), pickle.loads(pickle.dumps(bound))):
        assert other.num_params == bound.num_params
