"""What cannot be placed is refused, with all names and the arguments that place it."""

import ast
import re

import pytest
import torch
from support.attention import Attention, nano_gpt
from support.raw_parameters import Experts, tied
from torch import nn
from torch.nn.utils import parametrizations

from lightning_linf import Partition
from lightning_linf.partition.placement import PlacementError

REFUSALS = {
    "unknown name": (nn.Linear(2, 2), "rows", {}, r"Partition.of: expected `name`.*'head'.*'rows'"),
    "dimension": (nn.Linear(2, 2), "row", {"output_dims": 0}, "`output_dims`.* got 0"),
    "dimension in words": (nn.Linear(2, 2), "row", {"output_dims": {"w": "0"}}, "`output_dims`"),
    "broken pattern": (nn.Linear(2, 2), "row", {"output_dims": {"(": 0}}, "regular expressions"),
    "unknown order": (nn.Linear(2, 2), "head", {"fused_qkv": "kqv"}, "`fused_qkv`.*'kqv'"),
    "nothing trainable": (nn.ReLU(), "row", {}, "trainable parameters in ReLU, got none"),
    "none chosen": (nn.Linear(2, 2), "row", {"parameters": []}, "trainable parameters in Linear"),
    "lazy": (nn.LazyLinear(2), "row", {}, "but weight is still lazy"),
    "empty": (
        nn.ParameterList([torch.zeros(0, 2)]),
        "tensor",
        {},
        "ParameterList, got none with entries",
    ),
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
        r"Got 0 \(Attention, 2 heads\).*0\.linear_0\.weight \(8 to 8\), 0\.linear_1\.weight",
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
        "only one of these ways",
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
        r"unparametrized.* a\.linear_3\.weight \(4 to 4\)",
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
