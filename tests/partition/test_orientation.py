"""Rows and columns by the type of a layer, of raw parameters, and as they are stated."""

import pytest
import torch
from support.blocks import assert_blocks, by_weight, by_weight_and_entry, numbers
from support.raw_parameters import Experts, LowRank
from torch import nn

from lightning_linf import Partition


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


def test_output_dims_place_what_no_type_does_and_win_over_types():
    module = nn.Sequential(Experts(), nn.Linear(3, 2))
    stated = {r"weights": -1, r"^1\.": 1}
    rows = Partition.of(module, "row", output_dims=stated)
    assert_blocks(rows, module, by_weight_and_entry(lambda *index: index[-1]))
    columns = Partition.of(module, "column", output_dims=stated)
    assert_blocks(columns, module, by_weight(lambda *index: index[0]))
