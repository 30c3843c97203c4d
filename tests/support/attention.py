"""Modules with attention of many kinds, and which head each entry of their parameters belongs to.

Each function gives a module, rules, and the arguments of `Partition.of` that it needs. A rule says,
for the parameters whose name a regular expression finds, which block the entry at an index is in.
Parameters that no rule finds are one block.
"""

from types import SimpleNamespace

import pytest
from support import networks
from torch import nn


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
