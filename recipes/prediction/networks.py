"""The networks of the tasks: small, and written plainly."""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from resnet import Block as ResidualBlock


class Attention(nn.Module):
    """Attention of several heads, with fused queries, keys and values."""

    def __init__(self, width: int, num_heads: int, causal: bool, rotary: bool) -> None:
        super().__init__()
        self.num_heads, self.causal, self.rotary = num_heads, causal, rotary
        self.qkv = nn.Linear(width, 3 * width, bias=not rotary)
        self.out = nn.Linear(width, width, bias=not rotary)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (batch, length, width) -> the same."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, -1).transpose(1, 3)
        q, k, v = heads.unbind(2)  # each (batch, heads, length, width / heads)
        if self.rotary:
            q, k = rotated(q), rotated(k)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


def rotated(x: Tensor) -> Tensor:
    """Turn pairs of entries by angles that grow with the position.

    Source:
        Su et al., arXiv:2104.09864, with entry i and entry i + n / 2 as a pair.
    """
    length, size = x.shape[-2:]
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(length)[:, None] * frequencies  # (length, size / 2)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class GatedMLP(nn.Module):
    """The feed-forward part of LLaMA: SiLU of one linear map gates another."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., width) -> the same."""
        out: Tensor = self.down(silu(self.gate(x)) * self.up(x))
        return out


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., width) -> the same."""
        out: Tensor = self.down(gelu(self.up(x)))
        return out


class TransformerBlock(nn.Module):
    """Attention and a feed-forward part, each after a norm and beside a shortcut."""

    def __init__(self, width: int, num_heads: int, causal: bool, llama: bool) -> None:
        super().__init__()
        norm = nn.RMSNorm if llama else nn.LayerNorm
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attention = Attention(width, num_heads, causal, rotary=llama)
        self.mlp = GatedMLP(width, 2 * width) if llama else MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (batch, length, width) -> the same."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class LanguageModel(nn.Module):
    """A causal transformer: of GPT-2's kind with learned positions, or of LLaMA's."""

    def __init__(self, vocab: int, length: int, width: int, num_blocks: int, llama: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = None if llama else nn.Embedding(length, width)
        blocks = (TransformerBlock(width, 4, True, llama) for _ in range(num_blocks))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.RMSNorm(width) if llama else nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        for embedding in (self.tokens, self.positions):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (batch, length) -> (batch, length, vocab)."""
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class RecurrentModel(nn.Module):
    """An LSTM that predicts the next token."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (batch, length) -> (batch, length, vocab)."""
        logits: Tensor = self.head(self.lstm(self.tokens(tokens))[0])
        return logits


class Patches(nn.Module):
    """Cut images of 8 x 8 into 16 patches of 2 x 2, and embed each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (batch, 1, 8, 8) -> (batch, 16, width)."""
        patches: Tensor = self.embed(images).flatten(2).transpose(1, 2)
        return patches


class VisionTransformer(nn.Module):
    """A transformer on the patches of an image; its class is read from their mean."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.patches, self.positions = Patches(width), nn.Embedding(16, width)
        blocks = (TransformerBlock(width, 4, False, False) for _ in range(num_blocks))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (batch, 1, 8, 8) -> (batch, 10)."""
        x = self.blocks(self.patches(images) + self.positions.weight)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


class MixerBlock(nn.Module):
    """An MLP across patches and one across channels, each after a norm and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across, self.within = MLP(16, 32), MLP(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (batch, 16, width) -> the same."""
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.within(self.norm2(x))
        return out


class Mixer(nn.Module):
    """An MLP-mixer on the patches of an image (Tolstikhin et al., arXiv:2105.01601)."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.patches = Patches(width)
        self.blocks = nn.Sequential(*(MixerBlock(width) for _ in range(num_blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (batch, 1, 8, 8) -> (batch, 10)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.patches(images))).mean(dim=1))
        return logits


def residual_network(width: int) -> nn.Sequential:
    """Make three residual blocks with BatchNorm, of which two halve the image."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


def perceptron(*widths: int, activation: type[nn.Module]) -> nn.Sequential:
    """Make linear maps from each width to the next, with activations between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate(pairwise(widths)):
        if i:
            layers[f"activation{i}"] = activation()
        layers[f"linear{i}"] = nn.Linear(before, after)
    return nn.Sequential(layers)


class Factorization(nn.Module):
    """A matrix as a product of two thin ones and a bias for each row and column."""

    def __init__(self, num_rows: int, num_columns: int, rank: int) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(num_rows, rank), nn.Embedding(num_columns, rank)
        self.row_bias, self.column_bias = nn.Embedding(num_rows, 1), nn.Embedding(num_columns, 1)
        for factor in (self.rows, self.columns):
            nn.init.normal_(factor.weight, std=0.1)
        for bias in (self.row_bias, self.column_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, row: Tensor, column: Tensor) -> Tensor:
        """Shapes: (batch,), (batch,) -> (batch,)."""
        product = (self.rows(row) * self.columns(column)).sum(dim=-1)
        out: Tensor = product + (self.row_bias(row) + self.column_bias(column)).squeeze(-1)
        return out
