"""Heads are found by the structure of attention, or it is refused by name."""

import re

import pytest
from support.attention import ATTENTION, Attention, nano_gpt, output_beside_the_attention
from support.blocks import assert_blocks
from torch import nn
from torch.nn.utils import parametrizations

from lightning_linf import Partition
from lightning_linf.partition.placement import PlacementError


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


def test_frozen_attention_needs_no_option():
    module = nn.ModuleList([nano_gpt()[0], nn.MultiheadAttention(4, 2)])
    module[0].requires_grad_(False)
    assert Partition.of(module, "head").num_blocks == 6 + 6 + 2 + 1


def test_one_message_names_all_attention_that_is_not_understood():
    fused = [nano_gpt()[0] for _ in range(3)]
    odd = [nn.ModuleList([Attention((8, 8), (8, 4), nhead=2)]) for _ in range(2)]
    module = nn.ModuleDict({"h": nn.ModuleList(fused), "a": nn.ModuleList(odd)})
    with pytest.raises(PlacementError) as refused:
        Partition.of(module, "head")
    message = str(refused.value)
    assert "`fused_qkv` for h.{0-2}.0.linear_0.weight, whose 24 outputs are 3 of query" in message
    assert (
        "Got a.{0,1}.0 (Attention, 2 heads): a.{0,1}.0.linear_0.weight (8 to 8), "
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
