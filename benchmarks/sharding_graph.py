"""The graph that a token of a large transformer makes, computed on tensors without values."""

import torch
from sharding_model import Model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_linf import probe_memory

SEQUENCE_TOKENS = 2048
HEAD_WIDTH = 128


def graph_per_token(model: Model) -> float:
    """Bytes that a probe's graph and a product with it take for each token of a batch.

    The graph is linear in the number of sequences and of blocks, so that four small cases tell it.
    """
    one, two = ([_graph(model, layers, rows) for rows in (1, 2)] for layers in (1, 2))
    of_first, of_both = one[1] - one[0], two[1] - two[0]  # of a sequence, without parameters
    of_block = of_both - of_first
    return (of_first + (model.layers - 1) * of_block) / SEQUENCE_TOKENS


def _graph(model: Model, layers: int, rows: int) -> int:
    from transformers import LlamaConfig, LlamaForCausalLM  # some seconds

    config = LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        intermediate_size=model.hidden,
        num_hidden_layers=layers,
        num_attention_heads=model.width // HEAD_WIDTH,
        num_key_value_heads=model.key_width // HEAD_WIDTH,
        max_position_embeddings=SEQUENCE_TOKENS,
        use_cache=False,
    )
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
        tokens = torch.zeros(rows, SEQUENCE_TOKENS, dtype=torch.int64)
    memory = probe_memory(network, [tokens], loss=_token_loss, num_probes=4, num_partitions=2)
    return memory.graph + memory.product


def _token_loss(module: nn.Module, tokens: Tensor) -> Tensor:
    logits = module(tokens).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
