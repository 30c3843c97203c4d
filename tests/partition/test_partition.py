"""Every partition against labels that loops over single entries give."""

import ast
import copy
import itertools
import pickle
import re
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from support import networks
from torch import nn
from torch.nn.utils import parametrizations

from lightning_linf import Partition
from lightning_linf.partition.placement import PlacementError
from lightning_linf.partition_names import PartitionName

NAMES = get_args(PartitionName)


def labels(module, key):
    """Number all entries by ``key(parameter's name, index)``, in order of appearance."""
    seen = {}
    return torch.tensor(
        [
            seen.setdefault(key(name, index), len(seen))
            for name, p in module.named_parameters()
            if p.requires_grad
            for index in itertools.product(*map(range, p.shape))
        ]
    )


def numbers(partition):
    return partition.expand(torch.arange(partition.num_blocks))


def assert_blocks(partition, module, key):
    expected = labels(module, key)
    assert torch.equal(numbers(partition), expected)
    assert partition.num_params == len(expected)
    assert partition.num_blocks == int(expected.max()) + 1
    values = torch.randint(-1000, 1000, (2, len(expected)))
    sums = torch.zeros(2, partition.num_blocks, dtype=torch.int64)
    for entry, label in enumerate(expected.tolist()):
        sums[:, label] += values[:, entry]
    assert torch.equal(partition.block_sum(values), sums)


def by_weight(weight):
    """Lift a key of the index in a tensor of two or more dimensions to all parameters."""
    return lambda name, index: (name, weight(*index) if len(index) > 1 else None)


def by_weight_and_entry(weight):
    return lambda name, index: (name, weight(*index) if len(index) > 1 else index)


def conv1d(num_outputs, num_inputs):
    utils = pytest.importorskip("transformers.pytorch_utils")
    return utils.Conv1D(num_outputs, num_inputs)


# By layer: the row and the column of an entry of its weight.
ORIENTED = {
    "linear": (lambda: nn.Linear(3, 2), lambda i, j: i, lambda i, j: j),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), lambda i, j, k: i, lambda i, j, k: (j, k)),
    "embedding": (lambda: nn.Embedding(5, 3), lambda i, j: i, lambda i, j: j),
    "bag": (lambda: nn.EmbeddingBag(5, 3), lambda i, j: i, lambda i, j: j),
    "lstm": (lambda: nn.LSTM(3, 4, proj_size=2), lambda i, j: i, lambda i, j: j),
    "gru_cell": (lambda: nn.GRUCell(3, 2), lambda i, j: i, lambda i, j: j),
    "conv": (
        lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
        lambda o, i, *k: o,
        lambda o, i, *k: 2 * (o // 3) + i,
    ),
    "conv_transpose": (
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2),
        lambda i, o, *k: 3 * (i // 2) + o,
        lambda i, o, *k: i,
    ),
    "conv1d": (lambda: conv1d(3, 2), lambda i, j: j, lambda i, j: i),
    "layer_norm": (lambda: nn.LayerNorm((2, 3)), lambda *index: index, lambda *index: None),
    "batch_norm": (lambda: nn.BatchNorm2d(3), lambda *index: index, lambda *index: None),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        lambda *index: index[:1] if len(index) == 2 else index,
        lambda *index: index[1:] if len(index) == 2 else None,
    ),
}


@pytest.mark.parametrize("layer", ORIENTED)
def test_rows_and_columns_by_module_type(layer):
    make, row, column = ORIENTED[layer]
    module = make()
    assert_blocks(Partition.of(module, "row"), module, by_weight_and_entry(row))
    assert_blocks(Partition.of(module, "column"), module, by_weight(column))


@pytest.mark.parametrize("layer", ["linear", "conv", "conv_transpose", "conv1d"])
def test_row_is_what_an_output_depends_on_and_column_what_an_input_acts_through(layer):
    module = ORIENTED[layer][0]().double()
    num_inputs = {"linear": 3, "conv1d": 2}.get(layer, 4)
    tail = (3, 4) if "conv" in layer and layer != "conv1d" else ()
    channels = torch.ones(1, num_inputs, *tail, dtype=torch.float64)
    d = module.weight.numel()

    def acting(inputs, output=None):
        """Find the weights whose gradient is not zero."""
        outputs = module(inputs)[0]
        target = outputs.sum() if output is None else outputs[output].sum()
        (gradient,) = torch.autograd.grad(target, module.weight)
        return gradient.reshape(-1) != 0

    only = [module.weight]
    rows = numbers(Partition.of(module, "row", parameters=only))
    columns = numbers(Partition.of(module, "column", parameters=only))
    assert len(rows) == len(columns) == d
    for block in range(int(rows.max()) + 1):
        assert torch.equal(acting(channels, block), rows == block)
    for block in range(num_inputs):
        one = torch.zeros_like(channels)
        one[0, block] = 1
        assert torch.equal(acting(one), columns == block)


def test_blocks_above_the_tensor():
    module, *_ = networks.mlp()
    assert_blocks(Partition.of(module, "coordinate"), module, lambda *entry: entry)
    assert_blocks(Partition.of(module, "tensor"), module, lambda name, _: name)
    assert_blocks(Partition.of(module, "module"), module, lambda name, _: name.split(".")[0])
    assert_blocks(Partition.of(module, "global"), module, lambda *_: None)


# Attention: by name of a parameter, the key of an entry. What is not here is one block.


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    heads = {r"[qkv]_proj\.": lambda i, *_: i // 2, r"o_proj\.weight": lambda i, j: j // 2}
    return transformers.LlamaModel(config), heads, {}


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=8,
        hidden_size=6,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4,
    )
    heads = {
        r"\.(query|key|value)\.": lambda i, *_: i // 3,
        r"attention\.output\.dense\.weight": lambda i, j: j // 3,
    }
    return transformers.BertModel(config), heads, {}


def neox(order):
    def make():
        transformers = pytest.importorskip("transformers")
        config = transformers.GPTNeoXConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        fused = {
            "qkv_head": lambda i, *_: (i // 8, i % 8 // 4),
            "head_qkv": lambda i, *_: (i // 12, i % 12 // 4),
        }
        heads = {
            r"query_key_value\.": fused[order],
            r"attention\.dense\.weight": lambda i, j: j // 4,
        }
        return transformers.GPTNeoXModel(config), heads, {"fused_qkv": order}

    return make


def gpt2():
    heads = {
        r"c_attn\.weight": lambda i, j: (j // 8, j % 8 // 4),
        r"c_attn\.bias": lambda i: (i // 8, i % 8 // 4),
        r"attn\.c_proj\.weight": lambda i, j: i // 4,
    }
    return networks.gpt2()[0], heads, {}


def gpt2_with_cross_attention():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=4, n_positions=4, n_embd=8, n_layer=1, n_head=2, add_cross_attention=True
    )
    _, heads, _ = gpt2()
    query = {r"q_attn\.weight": lambda i, j: j // 4, r"q_attn\.bias": lambda i: i // 4}
    heads = {key.replace("attn\\.c_proj", "att.*\\.c_proj"): rule for key, rule in heads.items()}
    return transformers.GPT2Model(config), query | heads, {}


def torch_attention(**options):
    def make():
        heads = {
            "in_proj": lambda i, *_: (i // 6, i % 6 // 3),
            "[qkv]_proj_weight": lambda i, j: i // 3,
            "bias_[kv]": lambda i, j, k: k // 3,
            r"out_proj\.weight": lambda i, j: j // 3,
        }
        attention = nn.MultiheadAttention(6, 2, **options)
        return nn.Sequential(attention, nn.Linear(6, 2)), heads, {}

    return make


class Attention(nn.Module):
    """Linear maps of the given (inputs, outputs), and the attributes that tell of heads."""

    def __init__(self, *linears, norm=False, **attributes):
        super().__init__()
        for i, (num_inputs, num_outputs) in enumerate(linears):
            self.add_module(f"linear_{i}", nn.Linear(num_inputs, num_outputs))
        if norm:
            self.norm = nn.LayerNorm(attributes["head_dim"])
        for name, value in attributes.items():
            setattr(self, name, value)


def nano_gpt():
    module = Attention((8, 24), (8, 8), n_head=4, n_embd=8)
    heads = {
        r"linear_0\.": lambda i, *_: (i // 8, i % 8 // 2),
        r"linear_1\.weight": lambda i, j: j // 2,
    }
    return nn.ModuleList([module, nn.Linear(8, 4)]), heads, {"fused_qkv": "qkv_head"}


def query_and_fused_key_value():
    module = Attention((4, 4), (6, 8), (4, 5), heads=2)
    heads = {
        r"linear_0\.": lambda i, *_: i // 2,
        r"linear_1\.": lambda i, *_: (i // 4, i % 4 // 2),
        r"linear_2\.weight": lambda i, j: j // 2,
    }
    return module, heads, {"fused_qkv": "head_qkv"}


def output_beside_the_attention():
    module = nn.Module()
    module.own, module.norm = Attention((5, 6), (5, 6), (5, 6), heads=2), nn.LayerNorm(6)
    module.out = nn.Sequential(nn.Linear(6, 5), nn.Dropout())
    heads = {
        r"own\.linear_[012]\.": lambda i, *_: i // 3,
        r"out\.0\.weight": lambda i, j: j // 3,
    }
    return nn.ModuleList([nn.Linear(6, 5), module]), heads, {}


def head_size_that_does_not_divide_the_width():
    config = SimpleNamespace(num_attention_heads=2)
    module = Attention((5, 6), (7, 3), (7, 3), (6, 5), norm=True, head_dim=3, config=config)
    heads = {r"linear_[012]\.": lambda i, *_: i // 3, r"linear_3\.weight": lambda i, j: j // 3}
    return module, heads, {}


ATTENTION = {
    "gpt2": gpt2,
    "gpt2_cross": gpt2_with_cross_attention,
    "llama": llama,
    "bert": bert,
    "neox": neox("head_qkv"),
    "neox_other_order": neox("qkv_head"),
    "torch": torch_attention(),
    "torch_separate": torch_attention(kdim=3, vdim=4, add_bias_kv=True),
    "torch_no_bias": torch_attention(bias=False),
    "nano_gpt": nano_gpt,
    "query_and_kv": query_and_fused_key_value,
    "output_beside": output_beside_the_attention,
    "own_head_size": head_size_that_does_not_divide_the_width,
}


@pytest.mark.parametrize("architecture", ATTENTION)
def test_heads_by_structure(architecture):
    module, rules, options = ATTENTION[architecture]()
    used = set()

    def key(name, index):
        for pattern, rule in rules.items():
            if re.search(pattern, name):
                used.add(pattern)
                return name, rule(*index)
        return name, None

    heads = Partition.of(module, "head", **options)
    assert_blocks(heads, module, key)
    assert "torch" in architecture or used == set(rules)
    assert heads.num_blocks > len(heads.names)


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


def test_frozen_attention_needs_no_option():
    module = nn.ModuleList([nano_gpt()[0], nn.MultiheadAttention(4, 2)])
    module[0].requires_grad_(False)
    assert Partition.of(module, "head").num_blocks == 6 + 6 + 2 + 1


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, 3, 4))
        self.scale = nn.Parameter(torch.zeros(()))


class LowRank(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.down = nn.Parameter(torch.zeros(1, 3))


RAW = {  # by shape: the row and the column of an entry
    (3, 4): (lambda i, j: i, lambda i, j: j),
    (1, 5, 4): (lambda _, i, j: i, lambda _, i, j: j),  # positions
    (1, 1, 4): (lambda _, i, j: None, lambda _, i, j: j),  # a token
    (1, 4): (lambda i, j: None, lambda i, j: j),
    (4, 1): (lambda i, j: i, lambda i, j: None),
    (2, 3, 4): (lambda i, j, k: i, lambda i, j, k: j),  # experts
    (1, 1, 2, 3, 4): (lambda *i: i[2], lambda *i: i[3]),
    (1, 1): (lambda i, j: None, lambda i, j: None),
}


@pytest.mark.parametrize("shape", RAW)
def test_rows_of_a_raw_parameter_are_those_of_its_first_dimension(shape):
    module, (row, column) = nn.ParameterDict({"raw": torch.zeros(shape)}), RAW[shape]
    assert_blocks(Partition.of(module, "row"), module, by_weight(row))
    assert_blocks(Partition.of(module, "column"), module, by_weight(column))


def test_what_a_subclass_adds_is_a_raw_parameter():
    module = LowRank()
    assert_blocks(Partition.of(module, "row"), module, by_weight_and_entry(lambda i, j: i))


def test_table_marks_what_was_assumed_unless_it_is_stated(capsys):
    module = nn.Sequential(LowRank(), Experts())
    Partition.of(module, "row").describe()
    text = capsys.readouterr().out
    assert re.search(r"0\.down \* .* 1 .* 3 ", text)
    assert re.search(r"1\.weights \* .* 2 .* 12 ", text)
    assert re.search(r"0\.weight  .* 2 .* 3 ", text)
    assert "*: no module tells which dimension is the output" in text
    Partition.of(module, "row", output_dims={"down": 0, "weights": 0}).describe()
    Partition.of(module, "tensor").describe()
    assert "*" not in capsys.readouterr().out


def test_output_dims_place_what_no_type_does_and_win_over_types():
    module = nn.Sequential(Experts(), nn.Linear(3, 2))
    stated = {r"weights": -1, r"^1\.": 1}
    rows = Partition.of(module, "row", output_dims=stated)
    assert_blocks(rows, module, by_weight_and_entry(lambda *index: index[-1]))
    columns = Partition.of(module, "column", output_dims=stated)
    assert_blocks(columns, module, by_weight(lambda *index: index[0]))


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


def test_table_shows_every_tensor_and_the_memory(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    module, *_ = networks.mlp()
    Partition.of(module, "row").describe()
    text = capsys.readouterr().out
    assert re.search(r"0\.weight.*\(8, 5\).* 8 .* 5 ", text)
    assert "row: 37 blocks of 104 parameters" in text
    assert "0.000141 MiB, per parameter 0.000397 MiB" in text
    Partition.of(module, "module").describe()
    assert re.search(r"1\.bias.*\(8,\).*1, shared by 2 .* 16 ", capsys.readouterr().out)
    uneven = Partition.by_function(
        module, lambda name, p: (torch.arange(p.numel()) // 7).view_as(p)
    )
    uneven.describe()
    assert re.search(r"0\.weight.* 6 .*5-7 ", capsys.readouterr().out)


def test_table_shows_brackets_and_many_tensors(capsys):
    module = nn.ParameterDict({f"[red]{i}": torch.zeros(1) for i in range(70)})
    partition = Partition.of(module, "global")
    partition.describe()
    text = capsys.readouterr().out
    assert all(f"[red]{i} " in text for i in range(70))
    assert repr(partition) == "Partition('global', 1 block of 70 parameters)"


def tied(first, second):
    second.weight = first.weight
    return nn.ModuleList([first, second])


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


REFUSALS = {
    "unknown name": (nn.Linear(2, 2), "rows", {}, r"Partition.of: expected `name`.*'head'.*'rows'"),
    "dimension": (nn.Linear(2, 2), "row", {"output_dims": 0}, "`output_dims`.* got 0"),
    "dimension in words": (nn.Linear(2, 2), "row", {"output_dims": {"w": "0"}}, "`output_dims`"),
    "broken pattern": (nn.Linear(2, 2), "row", {"output_dims": {"(": 0}}, "regular expressions"),
    "unknown order": (nn.Linear(2, 2), "head", {"fused_qkv": "kqv"}, "`fused_qkv`.*'kqv'"),
    "nothing trainable": (nn.ReLU(), "row", {}, "trainable parameters in ReLU, got none"),
    "none chosen": (nn.Linear(2, 2), "row", {"parameters": []}, "trainable parameters in Linear"),
    "lazy": (nn.LazyLinear(2), "row", {}, "but weight is still lazy"),
    "empty": (nn.ParameterList([torch.zeros(0, 2)]), "tensor", {}, r"with entries in .*, got none"),
    "parametrized": (
        parametrizations.weight_norm(nn.Linear(3, 2)),
        "row",
        {},
        r"got \S+original0 \(2, 1\) of ParametrizationList, which tells nothing; "
        r"\S+original1 \(2, 3\) .*output_dims=\{'\S+0': that dimension, '\S+1': that dimension\}",
    ),
    "owners disagree": (
        tied(nn.Conv1d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1)),
        "row",
        {},
        r"0\.weight \(2, 2, 1\).*Conv1d and ConvTranspose1d, which contradict each other",
    ),
    "no such dimension": (Experts(), "row", {"output_dims": {"w": 3}}, r"weights .*got 3 from 'w'"),
    "unused pattern": (Experts(), "row", {"output_dims": {"w": 0, "x": 0}}, "got 'x', which is in"),
    "pattern for a vector": (Experts(), "row", {"output_dims": {"scale": 0}}, "got 'scale'"),
    "no attention": (nn.Linear(2, 2), "head", {}, "attention .* in Linear, got none. Use 'tensor'"),
    "fusion in an unknown order": (
        nano_gpt()[0],
        "head",
        {},
        r"`fused_qkv` for 0\.linear_0\.weight, whose 24 outputs .* of 4 heads",
    ),
    "no known attention": (
        nn.Sequential(Attention((8, 8), (8, 4), nhead=2)),
        "head",
        {},
        r"of 0 \(Attention, 2 heads\).*0\.linear_0\.weight \(8 to 8\), 0\.linear_1\.weight",
    ),
    "heads do not divide": (Attention((6, 18), (6, 6), num_heads=4), "head", {}, "linear_0"),
    "wrong head size": (
        Attention((8, 24), (8, 8), num_heads=2, head_dim=2),
        "head",
        {"fused_qkv": "qkv_head"},
        "2 heads of size 2",
    ),
    "two readings": (
        Attention((4, 8), (4, 4), (4, 4), num_heads=4),
        "head",
        {"fused_qkv": "qkv_head"},
        "in one way only",
    ),
    "parametrized attention": (
        parametrizations.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight"),
        "head",
        {},
        r"the module \(\w*MultiheadAttention\) as its own parameters",
    ),
    "parametrized linear": (
        nn.ModuleDict({"a": Attention((4, 4), (4, 4), (4, 4), (4, 4), nhead=2)}),
        "head",
        {},
        r"unparametrized .* a\.linear_3\.weight \(4 to 4\)",
    ),
    "attention that shares otherwise": (
        nn.ModuleList([Attention((4, 4), (4, 4), (4, 4), nhead=n) for n in (2, 4)]),
        "head",
        {},
        "share a parameter to split it alike, got 1,",
    ),
}
parametrizations.weight_norm(REFUSALS["parametrized linear"][0]["a"].linear_3)
tied(*(REFUSALS["attention that shares otherwise"][0][i].linear_0 for i in (0, 1)))


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_cannot_be_placed_is_refused(reason):
    module, name, options, message = REFUSALS[reason]
    with pytest.raises(ValueError, match=message):
        Partition.of(module, name, **options)


class Parametrized(nn.Module):
    """Parametrized maps in equal layers, and one whose owners contradict each other."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([nn.Linear(3, 2)]) for _ in range(4)])
        for layer in (self.layers[0], self.layers[1], self.layers[3]):
            parametrizations.weight_norm(layer[0])
        self.last = tied(nn.Conv1d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1))


def test_one_message_names_all_parameters_without_rows_and_arguments_that_place_them():
    module = Parametrized()
    with pytest.raises(PlacementError) as refused:
        Partition.of(module, "row")
    message = str(refused.value)
    for part in (
        "layers.{0,1,3}.0.parametrizations.weight.original0 (2, 1) of ParametrizationList",
        "layers.{0,1,3}.0.parametrizations.weight.original1 (2, 3) of ParametrizationList",
        "last.0.weight (2, 2, 1) of Conv1d and ConvTranspose1d, which contradict each other",
    ):
        assert part in message
    dims = re.search(r"output_dims=(\{.*\})", message)[1].replace("that dimension", "0")
    rows = Partition.of(module, "row", output_dims=ast.literal_eval(dims))
    assert rows.num_blocks == 3 * (2 + 2 + 2) + (2 + 2) + (2 + 2 + 2)


def test_one_message_names_all_attention_that_is_not_understood():
    fused = [nano_gpt()[0] for _ in range(3)]
    odd = [nn.ModuleList([Attention((8, 8), (8, 4), nhead=2)]) for _ in range(2)]
    module = nn.ModuleDict({"h": nn.ModuleList(fused), "a": nn.ModuleList(odd)})
    with pytest.raises(PlacementError) as refused:
        Partition.of(module, "head")
    message = str(refused.value)
    assert "`fused_qkv` for h.{0-2}.0.linear_0.weight, whose 24 outputs are 3 of query" in message
    assert (
        "got those of a.{0,1}.0 (Attention, 2 heads): a.{0,1}.0.linear_0.weight (8 to 8), "
        "a.{0,1}.0.linear_1.weight (8 to 4)."
    ) in message
    with pytest.raises(PlacementError, match=r"^((?!fused_qkv).)*$"):
        Partition.of(module, "head", fused_qkv="qkv_head")


@pytest.mark.parametrize(
    "beside",
    {
        "none": [],
        "two": [nn.Linear(6, 5), nn.Linear(6, 5)],
        "not from the heads": [nn.Linear(5, 5)],
        "not back to the input": [nn.Linear(6, 6)],
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_output_projection_beside_the_attention_stays_whole(beside):
    own = Attention((5, 6), (5, 6), (5, 6), heads=2)
    module = nn.ModuleList([own, *beside[1]])
    assert Partition.of(module, "head").num_blocks == 6 * 2 + 2 * len(beside[1])


def test_output_projection_beside_frozen_attention_is_split():
    module, *_ = output_beside_the_attention()
    module[1].own.requires_grad_(False)
    only = [module[1].out[0].weight]
    assert Partition.of(module, "head", parameters=only).num_blocks == 2


def test_parametrized_output_projection_beside_the_attention_is_refused():
    module, *_ = output_beside_the_attention()
    parametrizations.weight_norm(module[1].out[0])
    with pytest.raises(PlacementError, match=r"1\.own\.linear_2\..*, 1\.out\.0\.weight \(6 to 5\)"):
        Partition.of(module, "head")


def test_stated_head_size_tells_two_readings_apart():
    key_value_first = Attention((4, 8), (4, 4), (4, 4), num_heads=4, head_dim=1)
    fused = Partition.of(key_value_first, "head", fused_qkv="qkv_head")
    assert fused.num_blocks == 8 + 8 + 4 + 4 + 4 + 1
    grouped = Attention((4, 8), (4, 4), (4, 4), num_heads=4, head_dim=2)
    assert Partition.of(grouped, "head").num_blocks == 2 * (4 + 2 + 2)


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
