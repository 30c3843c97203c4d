"""A small network to shard, with its data."""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.out(torch.tanh(self.q(x) + self.k(x) * self.v(x)))


class Net(nn.Module):
    """Rows that do not divide by the ranks, a size of 1, a frozen and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.attention = Attention()
        self.norm = nn.LayerNorm(6)
        self.gain = nn.Parameter(torch.ones(1))
        self.outer = nn.Linear(6, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, x):
        hidden = self.norm(self.attention(torch.tanh(self.inner(x))))
        return self.outer(self.gain * hidden) + self.frozen


def net():
    torch.manual_seed(3)
    return Net().double()


def data():
    generator = torch.Generator().manual_seed(5)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(8, 4, **draw), torch.randn(8, 3, **draw)
