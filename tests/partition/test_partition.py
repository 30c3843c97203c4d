"""Every partition against labels that loops over single entries give."""

import copy
import itertools
import pickle
from typing import get_args

import pytest
import torch
from support import networks
from support.attention import ATTENTION
from support.blocks import assert_blocks, labels, numbers
from torch import nn

from lightning_linf import Partition
from lightning_linf.partition_names import PartitionName

NAMES = get_args(PartitionName)


def test_blocks_above_the_tensor():
    module, *_ = networks.mlp()
    assert_blocks(Partition.of(module, "coordinate"), module, lambda *entry: entry)
    assert_blocks(Partition.of(module, "tensor"), module, lambda name, _: name)
    assert_blocks(Partition.of(module, "module"), module, lambda name, _: name.split(".")[0])
    assert_blocks(Partition.of(module, "global"), module, lambda *_: None)


NETWORKS = {
    **{name: lambda make=make: (make()[0], {}) for name, make in networks.ALL.items()},
    **{name: lambda make=make: make()[::2] for name, make in ATTENTION.items()},
}


CASES = [
    (network, name)
    for network in NETWORKS
    for name in NAMES
    if name != "head" or network not in ("mlp", "conv")
]


@pytest.mark.parametrize(("network", "name"), CASES)
def test_sums_expansion_and_sizes_agree(network, name):
    module, options = NETWORKS[network]()
    partition = Partition.of(module, name, **options)
    d, num_blocks = partition.num_params, partition.num_blocks
    assert d == sum(p.numel() for p in module.parameters())
    x, y = torch.randint(-99, 99, (3, d)), torch.randint(-99, 99, (3, num_blocks))
    # Transposes of each other: <S x, y> = <x, E y>.
    assert torch.equal((partition.block_sum(x) * y).sum(-1), (x * partition.expand(y)).sum(-1))
    sizes = partition.sizes(x)
    assert int(sizes.sum()) == d
    assert torch.equal(sizes, partition.block_sum(torch.ones(d, dtype=torch.int64)))
    assert torch.equal(partition.block_sum(partition.expand(y)), y * sizes)
    assert partition.sizes(torch.empty(0, dtype=torch.float64)).dtype == torch.float64
    double = partition.block_sum(x.double())
    assert double.dtype == torch.float64
    assert torch.equal(double, partition.block_sum(x).double())


@pytest.mark.parametrize("network", NETWORKS)
def test_partitions_refine_each_other_in_order(network):
    module, options = NETWORKS[network]()
    names = [name for name in NAMES if (network, name) in CASES]
    phi = {name: Partition.of(module, name, **options) for name in names}
    order = ["coordinate", "row", "tensor", "module", "global"]
    for finer, coarser in itertools.product(order, order):
        expected = order.index(finer) <= order.index(coarser)
        assert phi[finer].refines(phi[coarser]) == expected
    for between in {"column", "head"} & set(names):
        assert phi["coordinate"].refines(phi[between])
        assert phi[between].refines(phi["tensor"])
        assert not phi["tensor"].refines(phi[between])
    assert not phi["row"].refines(phi["column"])
    if "head" in phi:  # a row of the output projection reads all heads, a column of q leads to all
        assert not phi["row"].refines(phi["head"])
        assert not phi["column"].refines(phi["head"])


def test_tied_parameter_counts_once_and_belongs_to_its_first_owner():
    module, *_ = networks.gpt2()
    partition = Partition.of(module, "module")
    assert "lm_head.weight" not in partition.names
    assert partition.num_params == sum(p.numel() for p in module.parameters())
    rows = Partition.of(module, "row", parameters=[module.lm_head.weight])
    assert rows.names == ["transformer.wte.weight"]
    assert_blocks(rows, module.lm_head, lambda name, index: index[0])  # owners agree: one per token


def test_frozen_and_unchosen_parameters_are_left_out():
    module, *_ = networks.mlp()
    module[0].weight.requires_grad_(False)
    assert Partition.of(module, "tensor").names == ["0.bias", "1.weight", "1.bias", "3.weight"]
    chosen = [module[3].weight, module[0].bias, module[0].weight]
    partition = Partition.of(module, "row", parameters=chosen)
    assert partition.names == ["0.bias", "3.weight"]
    assert partition.shapes == [(8,), (5, 8)]
    assert partition.num_blocks == 8 + 5
    by_name = Partition.by_regex(module, r"(\d)", parameters=chosen)
    assert (by_name.num_params, by_name.num_blocks) == (48, 2)


def test_regular_expression_groups_tensors():
    module, *_ = networks.gpt2()
    layers = Partition.by_regex(module, r"h\.(\d+)\.|(wte|wpe|ln_f)", name="layer")
    assert layers.name == "layer"
    assert layers.num_blocks == 2 + 3
    kind = Partition.by_regex(module, "weight|bias")
    assert_blocks(kind, module, lambda name, _: name.rsplit(".", 1)[1])


def test_function_gives_labels_and_indices():
    module, *_ = networks.mlp()

    def parity(name, p):
        if p.ndim == 1:
            return ("vectors", p.numel())
        return 10 - (torch.arange(p.numel()).reshape(p.shape) % 3)

    def key(name, index):
        p = module.get_parameter(name)
        if p.ndim == 1:
            return p.numel()
        return name, (index[0] * p.shape[1] + index[1]) % 3

    partition = Partition.by_function(module, parity)
    expected = labels(module, key)
    order = numbers(partition)
    # The same blocks, numbered otherwise: each pair of numbers stands for one block.
    assert len(set(zip(order.tolist(), expected.tolist(), strict=True))) == partition.num_blocks
    assert len(set(expected.tolist())) == partition.num_blocks == 3 + 1 + 3
    x, y = torch.randint(-9, 9, (2, 104)), torch.randint(-9, 9, (2, 7))
    assert torch.equal((partition.block_sum(x) * y).sum(), (x * partition.expand(y)).sum())
    ones = torch.ones(104, dtype=torch.int64)
    assert torch.equal(partition.sizes(x), partition.block_sum(ones))
    assert partition.refines(Partition.of(module, "global"))
    assert not partition.refines(Partition.of(module, "tensor"))  # equal vectors share a block


@pytest.mark.parametrize("name", NAMES)
def test_copies_split_alike_and_nothing_of_d_numbers_is_stored(name):
    module = nn.MultiheadAttention(500, 4)  # a million parameters
    partition = Partition.of(module, name)
    pickled = pickle.dumps(partition)
    assert len(pickled) < 2_000
    values = torch.randint(9, (partition.num_params,))
    for other in (pickle.loads(pickled), copy.deepcopy(partition)):
        assert repr(other) == repr(partition)
        assert torch.equal(other.block_sum(values), partition.block_sum(values))


def test_sums_are_differentiable_and_batched():
    module, *_ = networks.mlp()
    rows = Partition.of(module, "row")
    x = torch.randn(4, 104, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(rows.block_sum)(x), rows.block_sum(x), rtol=0, atol=0)
    y = torch.randn(rows.num_blocks, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(rows.block_sum(x.requires_grad_()), x, y.expand(4, -1))
    assert torch.equal(gradient, rows.expand(y).expand(4, -1))


class Holed(nn.Module):
    """With parameters that have no entries, among them one whose rows nobody knows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.empty(0, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.embedding = nn.Embedding(0, 3)
        self.layer = nn.Linear(3, 1)
        self.last = nn.Parameter(torch.empty(0))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_entries_have_no_block(name):
    module = Holed()
    whole = Partition.of(module, name)
    full = Partition.of(module, name, parameters=[p for p in module.parameters() if p.numel()])
    assert whole.names == [name for name, _ in module.named_parameters()]
    assert torch.equal(numbers(whole), numbers(full))
    x = torch.randn(2, full.num_params)
    assert torch.equal(whole.block_sum(x), full.block_sum(x))
    assert torch.equal(whole.sizes(x), full.sizes(x))
    assert whole.num_blocks == full.num_blocks
    assert whole.refines(Partition.of(module, "global"))
    assert Partition.of(module, "coordinate").refines(whole)


def test_labels_give_parameters_without_entries_no_block_either(capsys):
    by_name = Partition.by_regex(Holed(), r"^\w+")
    by_entry = Partition.by_function(Holed(), lambda _, p: torch.zeros(p.shape, dtype=torch.int64))
    assert (by_name.num_blocks, by_entry.num_blocks) == (2, 6)
    assert torch.equal(by_name.sizes(torch.ones(1)), torch.tensor([80.0, 4.0]))
    by_name.describe()
    rows = [line.split("│")[1:5] for line in capsys.readouterr().out.splitlines() if "│" in line]
    found = {row[0].strip(): [cell.strip() for cell in row[2:]] for row in rows}
    assert found["first"] == found["last"] == found["embedding.weight"] == ["0", "none"]
    assert found["layer.bias"] == ["1, shared by 2", "4"]


def test_regular_expression_must_match_every_name():
    module, *_ = networks.gpt2()
    with pytest.raises(
        ValueError, match=r"by_regex: .* got 4 without it: transformer\.wte\.weight,"
    ):
        Partition.by_regex(module, r"h\.(\d+)\.")
    with pytest.raises(ValueError, match=r"got 28 without it: (\S+, ){4}\S+ and 23 more"):
        Partition.by_regex(module, "nothing")


@pytest.mark.parametrize(
    ("label", "got"),
    [
        (None, "None"),
        ([1], r"\[1\]"),
        (([1],), r"\(\[1\],\)"),
        (torch.zeros(2, 2), "a torch.float32 tensor"),
        (torch.zeros(4, dtype=torch.int64), r"a torch.int64 tensor of shape \(4,\)"),
    ],
)
def test_function_must_label_every_parameter(label, got):
    module = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=f"by_function: expected of weight .* got {got}"):
        Partition.by_function(module, lambda name, p: label)


def test_values_of_another_size_are_refused():
    rows = Partition.of(nn.Linear(3, 2), "row")
    with pytest.raises(ValueError, match=r"block_sum: .* \(..., d\) with d = 8, got \(8, 4\)"):
        rows.block_sum(torch.zeros(8, 4))
    with pytest.raises(ValueError, match=r"expand: .* \(..., B\) with B = 4, got \(\)"):
        rows.expand(torch.zeros(()))


def test_other_parameters_are_refused():
    rows = Partition.of(nn.Linear(3, 2), "row")
    rows.check(["weight", "bias"], [(2, 3), (2,)])
    message = (
        r"check: .*Partition\('row', 4 .*, where {}, got {}. Build the Partition from the same"
    )
    with pytest.raises(ValueError, match=message.format(r"weight \(2, 3\)", r"weight \(3, 2\)")):
        rows.check(["weight", "bias"], [(3, 2), (2,)])
    with pytest.raises(ValueError, match=message.format(r"bias \(2,\)", "no further one")):
        rows.refines(Partition.of(nn.Linear(3, 2, bias=False), "tensor"))
    with pytest.raises(ValueError, match=message.format("no further one", r"more \(1,\)")):
        rows.check(["weight", "bias", "more"], [(2, 3), (2,), (1,)])
