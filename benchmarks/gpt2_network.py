"""A GPT-2 of any size at its start, and tokens for it: a network whose probes cost something."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel


class Shape(NamedTuple):
    """How large a GPT-2 is, and the batch that its loss is measured on."""

    width: int
    num_layers: int
    num_heads: int
    vocabulary: int
    sequences: int
    tokens: int  # of a sequence


TINY = Shape(32, 2, 2, 128, sequences=2, tokens=16)  # 31,296 parameters, for tests
SMALL = Shape(128, 4, 4, 4096, sequences=8, tokens=128)  # 1.33M
GPT2_124M = Shape(768, 12, 12, 50_304, sequences=4, tokens=1024)
GPT2_XL = Shape(1600, 48, 25, 50_257, sequences=1, tokens=512)  # 1.56G


def make_gpt2(shape: Shape, device: torch.device) -> nn.Module:
    """Make the network in float32, without dropout; the same weights on the same device."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.tokens,
        n_embd=shape.width,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        **dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
        **dict.fromkeys(["bos_token_id", "eos_token_id"], 0),
        use_cache=False,
    )
    with device:  # drawn where they stay: a large network takes minutes on the CPU
        return GPT2LMHeadModel(config)


def zipf_tokens(shape: Shape, device: torch.device, times: int = 1) -> Tensor:
    """Draw tokens by Zipf's law, as words of a text are. Shape: (times * sequences, tokens)."""
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, shape.vocabulary + 1, dtype=torch.float64)
    count = times * shape.sequences * shape.tokens
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return drawn.view(-1, shape.tokens).to(device)


def token_loss(module: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of every token but the first, in nats."""
    logits = module(tokens).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def gradient(module: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Take the gradient as a training does, with torch's fast attention."""
    return list(torch.autograd.grad(token_loss(module, tokens), list(module.parameters())))
