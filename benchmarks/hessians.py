"""Matrices of known (1,1)-norm: spectra, and the exact Hessians of small trained networks."""

import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_linf import Partition
from lightning_linf.partition_names import PartitionName

PARTITIONS: tuple[PartitionName, ...] = ("row", "tensor")
DIM = 1000  # of the spectra

Network = tuple[Callable[[], Tensor], nn.Module]  # the loss of a batch; all in float64


class Hessian(NamedTuple):
    """A symmetric matrix and what its rows belong to."""

    matrix: Tensor  # (d, d)
    sizes: list[int]  # rows of each parameter
    blocks: dict[str, Tensor]  # by partition, the block of each row (d,); of networks only


def diagonal() -> Hessian:
    """Entries that span orders of magnitude, no two rows of which share an error."""
    return Hessian((2 * _normal(DIM)).exp().diag(), [DIM], {})


def blocks_of(size: int) -> Hessian:
    """Positive blocks on the diagonal."""
    return Hessian(
        torch.block_diag(*(b @ b.T for b in _normal(DIM // size, size, size))), [DIM], {}
    )


def rank_one() -> Hessian:
    """All rows share their whole error."""
    column = _normal(DIM, 1)
    return Hessian(column @ column.T, [DIM], {})


def rank_one_and(bulk: Tensor) -> Hessian:
    """Half of the (1,1)-norm from one column, half from a bulk (d, d)."""
    one = rank_one().matrix
    return Hessian(one / one.abs().sum() + bulk / bulk.abs().sum(), [DIM], {})


def _dense() -> Tensor:
    matrix = _normal(DIM, DIM)
    return matrix + matrix.T


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def train_gpt2() -> Network:
    """Train a GPT-2 of 9,152 parameters on the ASCII bytes of Python's standard library."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    data = _text()
    config = GPT2Config(
        vocab_size=128,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        **dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
        **dict.fromkeys(["bos_token_id", "eos_token_id"], 0),
        use_cache=False,
        attn_implementation="eager",  # fused attention has no double backward
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))

    def loss() -> Tensor:
        starts = torch.randint(len(data) - 32, (32, 1))
        tokens = data[starts + torch.arange(32)]
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        # Not `model(tokens, labels=tokens).loss`, which is float32 whatever the logits are.
        return F.cross_entropy(logits, tokens[:, 1:].flatten())

    _train(optimizer, loss, num_steps=1500)
    model.double()
    return loss, model


def train_mlp() -> Network:
    """Train a net with LayerNorm of 5,114 parameters on scikit-learn's digits."""
    torch.manual_seed(0)
    images, labels = digits()
    model = nn.Sequential(
        *(nn.Linear(64, 48), nn.LayerNorm(48), nn.GELU()),
        *(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 10)),
    ).double()
    return _train_on(images, labels, model)


def train_conv() -> Network:
    """Train a convolutional net with BatchNorm of 1,486 parameters on the digits."""
    torch.manual_seed(0)
    images, labels = digits()
    images = images.unflatten(1, (1, 8, 8))
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GELU()),
        *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.GELU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)),
    ).double()
    loss, _ = _train_on(images, labels, model)
    model.eval()
    return loss, model


def _train_on(images: Tensor, labels: Tensor, model: nn.Module) -> Network:
    def loss(batch_size: int = 64) -> Tensor:
        chosen = torch.randint(len(images), (batch_size,))
        return F.cross_entropy(model(images[chosen]), labels[chosen])

    _train(torch.optim.Adam(model.parameters(), lr=3e-3), loss, num_steps=300)
    return partial(loss, 256), model


def train_contrastive() -> Network:
    """Train an encoder of 1,552 parameters to tell two noisy views of a digit from other digits."""
    torch.manual_seed(0)
    images, _ = digits()
    model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 12)).double()

    def loss(batch_size: int = 32) -> Tensor:
        chosen = images[torch.randint(len(images), (batch_size,))]
        one, other = (F.normalize(model(chosen + 0.1 * _normal(*chosen.shape))) for _ in range(2))
        return F.cross_entropy(one @ other.T / 0.2, torch.arange(batch_size))

    _train(torch.optim.Adam(model.parameters(), lr=3e-3), loss, num_steps=200)
    return loss, model


class GraphNet(nn.Module):
    """Two layers of means over neighbours."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.adjacency = adjacency  # (nodes, nodes), rows sum to 1
        self.inner, self.outer = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each node. Shapes: (nodes, 16) -> (nodes, 4)."""
        return self.adjacency @ self.outer(F.relu(self.adjacency @ self.inner(x)))


def train_graph() -> Network:
    """Train a graph network of 508 parameters on a random graph of 60 nodes."""
    torch.manual_seed(0)
    edges = torch.rand(60, 60).double() < 0.08
    adjacency = (edges | edges.T | torch.eye(60, dtype=torch.bool)).double()
    model = GraphNet(adjacency / adjacency.sum(dim=1, keepdim=True)).double()
    inputs, labels = _normal(60, 16), torch.randint(4, (60,))

    def loss() -> Tensor:
        return F.cross_entropy(model(inputs), labels)

    _train(torch.optim.Adam(model.parameters(), lr=1e-2), loss, num_steps=200)
    return loss, model


def train_prompt() -> Network:
    """Tune a prompt of 8 vectors, 128 parameters, for the frozen GPT-2 of ``train_gpt2``."""
    gpt2_loss, gpt2 = train_gpt2()
    gpt2_loss()  # draws a batch: where the network for itself is measured, training ends after it
    data = _text()
    prompt = nn.Embedding(8, 16).double()  # vectors before the embedded tokens

    def loss() -> Tensor:
        tokens = data[torch.randint(len(data) - 24, (32, 1)) + torch.arange(24)]
        embedded = gpt2.transformer.wte(tokens)  # type: ignore[operator, union-attr]
        inputs = torch.cat([prompt.weight.expand(32, -1, -1), embedded], dim=1)
        logits = gpt2(inputs_embeds=inputs).logits[:, 8:-1].flatten(0, 1)
        return F.cross_entropy(logits, tokens[:, 1:].flatten())

    _train(torch.optim.Adam(prompt.parameters(), lr=1e-2), loss, num_steps=60)
    return loss, prompt


def train_factorisation() -> Network:
    """Fit factors of 660 parameters to 40 % of the entries of a noisy matrix of rank 4."""
    torch.manual_seed(0)
    left, right = nn.Embedding(60, 6), nn.Embedding(50, 6)
    model = nn.ModuleList([left, right]).double()
    target = _normal(60, 4) @ _normal(4, 50) + 0.3 * _normal(60, 50)
    seen = torch.rand(60, 50) < 0.4

    def loss() -> Tensor:
        return (left.weight @ right.weight.T - target)[seen].square().mean()

    _train(torch.optim.Adam(model.parameters(), lr=1e-2), loss, num_steps=400)
    return loss, model


def _train(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _text() -> Tensor:
    """Give the ASCII bytes of Python's standard library, as tokens."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)
    return text[text < 128].long()


def digits() -> tuple[Tensor, Tensor]:
    """Give scikit-learn's digits: pixels (1797, 64) from 0 to 1 in float64, and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images) / 16, torch.tensor(labels)


def _exact_hessian(network: Network, name: str) -> Hessian:
    """Form the Hessian row by row, by double backward."""
    loss, module = network[0](), network[1]
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in gradients])
    dim = len(gradient)
    matrix = torch.empty(dim, dim, dtype=torch.float64)
    begin = time.perf_counter()
    for row in range(dim):
        parts = torch.autograd.grad(gradient[row], parameters, retain_graph=True)
        matrix[row] = torch.cat([part.reshape(-1) for part in parts])
        if row % 100 == 99:
            left = (time.perf_counter() - begin) / (row + 1) * (dim - row - 1)
            text = f"\r{name}: row {row + 1:,} of {dim:,}, {left:.0f} s left  "
            print(text, end="", file=sys.stderr, flush=True)
    print(f"\n{name}: {dim:,} parameters, loss {float(loss.detach()):.3f}")
    asymmetry = (matrix - matrix.T).abs().max() / matrix.abs().max()
    assert asymmetry < 1e-12, f"unsymmetric by {asymmetry:.1e}"  # a step in float32 leaves 1e-8
    blocks = {}
    for kind in PARTITIONS:
        partition = Partition.of(module, kind)
        blocks[kind] = partition.expand(torch.arange(partition.num_blocks))
    return Hessian((matrix + matrix.T) / 2, [p.numel() for p in parameters], blocks)


SPECTRA: dict[str, Callable[[], Hessian]] = {
    "diagonal": diagonal,
    "blocks of 5": lambda: blocks_of(5),
    "blocks of 50": lambda: blocks_of(50),
    "rank 1": rank_one,
    "rank 1 + blocks": lambda: rank_one_and(blocks_of(5).matrix),
    "rank 1 + dense": lambda: rank_one_and(_dense()),
}
TRAIN: dict[str, Callable[[], Network]] = {
    "factorisation": train_factorisation,
    "graph": train_graph,
    "prompt": train_prompt,
    "conv": train_conv,
    "contrastive": train_contrastive,
    "mlp": train_mlp,
    "gpt2": train_gpt2,
}


def make(name: str) -> Hessian:
    """Make the matrix of a name in ``SPECTRA`` or ``TRAIN``."""
    torch.manual_seed(0)
    return SPECTRA[name]() if name in SPECTRA else _exact_hessian(TRAIN[name](), name)
