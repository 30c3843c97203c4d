"""Which weights count as hidden matrices, by the types of the modules that hold them."""

import pytest
import torch
from support.raw_parameters import Experts, LowRank
from torch import nn

from lightning_linf import Partition
from lightning_linf.partition import hidden_matrices


class Model(nn.Module):
    def __init__(self, body, tied=False):
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.body = body
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.tokens.weight


def conv1d():
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)


BODIES = {
    "linear": (lambda: nn.Linear(4, 4), ["weight"]),
    "conv1d": (conv1d, ["weight"]),
    "attention": (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "attention of three": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "lstm": (
        lambda: nn.LSTM(4, 3, proj_size=2),
        ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"],
    ),
    "cell": (lambda: nn.GRUCell(4, 4), ["weight_ih", "weight_hh"]),
    "norm": (lambda: nn.LayerNorm((2, 4)), []),
    "convolution": (lambda: nn.Conv2d(4, 4, 1), []),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), []),
    "experts": (Experts, []),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), []),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_matrices_are_those_of_the_layers_between_embedding_and_head(name, tied):
    make, expected = BODIES[name]
    assert hidden_matrices(Model(make(), tied)) == [f"body.{each}" for each in expected]


def test_the_last_linear_map_is_no_head_if_that_is_tied_to_the_embedding():
    body = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    module = Model(body, tied=True)
    del module.head  # the weight is used by a function
    assert hidden_matrices(module) == ["body.0.weight"]
    module.head = nn.Linear(4, 7)
    module.head.weight = module.tokens.weight
    assert hidden_matrices(module) == ["body.0.weight", "body.1.weight"]


def test_frozen_weights_are_listed_and_a_tied_one_once():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    module[1].weight = module[0].weight
    module[0].requires_grad_(False)
    assert hidden_matrices(module) == ["0.weight"]


def test_what_a_subclass_adds_to_a_layer_is_left_out():
    assert hidden_matrices(nn.Sequential(LowRank(), nn.Linear(2, 2))) == ["0.weight"]


def test_gpt2_has_four_matrices_in_a_block():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    for tied in (True, False):
        config.tie_word_embeddings = tied
        names = hidden_matrices(transformers.GPT2LMHeadModel(config))
        assert names == [
            f"transformer.h.{layer}.{name}.weight"
            for layer in (0, 1)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ]


def test_every_name_is_that_of_a_partition():
    module = Model(nn.Linear(4, 4))
    assert set(hidden_matrices(module)) < set(Partition.of(module, "tensor").names)


def test_lazy_parameters_are_refused():
    with pytest.raises(ValueError, match=r"hidden_matrices: expected initialized.* 0.weight is"):
        hidden_matrices(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)))
