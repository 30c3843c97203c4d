"""Small modules that use their parameters in all the ways that sharding has to follow."""

import torch
import torch.nn.functional as F
from support import sharded_net
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

NUM_SAMPLES, LENGTH, WIDTH, NUM_TOKENS = 8, 5, 6, 11


class Tied(nn.Module):
    """A head that uses the weight of the embedding, which has a padding row."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, WIDTH, padding_idx=0)
        self.body = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        hidden = torch.tanh(self.body(self.embedding(tokens)))
        return F.linear(hidden, self.embedding.weight)


class Shared(nn.Module):
    """One parameter in two modules."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(LENGTH, 7, 3)
        self.batch_norm = nn.BatchNorm1d(7)
        self.group_norm = nn.GroupNorm(7, 7)
        self.scaled = weight_norm(nn.Linear(WIDTH - 2, 3))

    def forward(self, x):
        return self.scaled(self.group_norm(torch.tanh(self.batch_norm(self.conv(x)))))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x):
        for part in self.parts:
            x = checkpoint(lambda x, part=part: torch.tanh(part(x)), x, use_reentrant=False)
        return x


class Penalized(nn.Module):
    """A loss that reads all parameters, and a method that ``fully_shard`` is told of."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.register_buffer("scale", torch.tensor(0.3))

    def score(self, x):
        return self.body(x) * self.scale + sum(p.pow(4).sum() for p in self.parameters())


class Encoder(nn.Sequential):
    def __init__(self):
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 9, dropout=0.0, batch_first=True)
        super().__init__(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def compiled():
    module = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 3))
    module.compile()
    return module


def attention():
    return nn.MultiheadAttention(WIDTH, 2, batch_first=True)


MODULES = {
    "tied": Tied,
    "shared": Shared,
    "recurrent": Recurrent,
    "convolutional": Convolutional,
    "checkpointed": Checkpointed,
    "penalized": Penalized,
    "encoder": Encoder,
    "attention": attention,
    "compiled": compiled,
    "frozen": sharded_net.Net,
}


def make(name, dtype=torch.float64):
    """Give a module, and its inputs for all samples."""
    torch.manual_seed(3)
    module = MODULES[name]().to(dtype)
    if isinstance(module, Convolutional):
        for _ in range(3):  # running statistics
            module(torch.randn(NUM_SAMPLES, LENGTH, WIDTH).to(dtype))
    generator = torch.Generator().manual_seed(5)
    if name == "tied":
        return module, torch.randint(NUM_TOKENS, (NUM_SAMPLES, LENGTH), generator=generator)
    shape = (NUM_SAMPLES, 4) if name == "frozen" else (NUM_SAMPLES, LENGTH, WIDTH)
    return module, torch.randn(shape, generator=generator).to(dtype)


def loss(module, x):
    if isinstance(module, nn.MultiheadAttention):
        output = module(x, x, x)[0]
    elif isinstance(module, Penalized):
        output = module.score(x)
    else:
        output = module(x)
    if isinstance(module, Tied):
        return F.cross_entropy(output.flatten(0, 1), x.flatten())
    return output.square().sum((*range(1, output.ndim),)).mean()


def tell_methods(module):
    """Let ``fully_shard`` know of the method that is called in place of ``forward``."""
    if isinstance(module, Penalized):
        register_fsdp_forward_method(module, "score")
