"""Blockwise Adam from its definition, in Python numbers, and partitions to try it on."""

import math

import torch
from torch import nn

from lightning_linf.partition import Partition

ROUNDING = {"rtol": 1e-12, "atol": 1e-13}  # of float64, over 50 steps
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
FORMS = [None, False]  # of foreach: the fastest form that there is, and the plain one


class Net(nn.Module):
    """Attention, grouped convolution, an embedding and a linear map: 120 parameters."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.conv = nn.Conv2d(2, 4, (3, 1), groups=2)
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 2)
        self.norm = nn.LayerNorm((1,))


def thirds(name, p):
    """Three blocks of uneven sizes in no order, for tensors that have so many entries."""
    index = torch.arange(p.numel()) ** 2 % 3
    return index.view(p.shape) if p.numel() > 3 else name


PARTITIONS = {
    "coordinate": lambda net: Partition.of(net, "coordinate"),
    "row": lambda net: Partition.of(net, "row"),
    "column": lambda net: Partition.of(net, "column"),
    "head": lambda net: Partition.of(net, "head"),
    "tensor": lambda net: Partition.of(net, "tensor"),
    "module": lambda net: Partition.of(net, "module"),
    "global": lambda net: Partition.of(net, "global"),
    "by_regex": lambda net: Partition.by_regex(net, "weight|bias"),
    "by_function": lambda net: Partition.by_function(net, thirds),
}


class Reference:
    """Blockwise Adam with explicit loops over blocks and entries, in Python numbers."""

    def __init__(self, tensors, labels, options):
        self.entries = [t.detach().double().flatten().tolist() for t in tensors]
        self.labels = [label.flatten().tolist() for label in labels]
        self.options = [dict(DEFAULTS, **each) for each in options]
        self.m = [[0.0] * len(entries) for entries in self.entries]
        self.steps = [0] * len(tensors)
        self.v = dict.fromkeys((b for label in self.labels for b in label), 0.0)
        self.v_steps = dict.fromkeys(self.v, 0)

    def step(self, grads):
        grads = [None if g is None else g.double().flatten().tolist() for g in grads]
        denominators = {}
        for block in self.v:
            squares = []
            for label, g, each in zip(self.labels, grads, self.options, strict=True):
                if g is not None:
                    squares += [g[i] ** 2 for i, b in enumerate(label) if b == block]
                    if block in label:
                        options = each
            if squares:
                beta2, eps = options["betas"][1], options["eps"]
                mean = math.fsum(squares) / len(squares)
                self.v[block] = beta2 * self.v[block] + (1 - beta2) * mean
                self.v_steps[block] += 1
                v_hat = self.v[block] / (1 - beta2 ** self.v_steps[block])
                if options["eps_inside"]:
                    denominators[block] = math.sqrt(v_hat + eps)
                else:
                    denominators[block] = math.sqrt(v_hat) + eps
        for t, g in enumerate(grads):
            if g is None:
                continue
            options, beta1 = self.options[t], self.options[t]["betas"][0]
            self.steps[t] += 1
            for i, block in enumerate(self.labels[t]):
                g_i = -g[i] if options["maximize"] else g[i]
                self.m[t][i] = beta1 * self.m[t][i] + (1 - beta1) * g_i
                m_hat = self.m[t][i] / (1 - beta1 ** self.steps[t])
                self.entries[t][i] *= 1 - options["lr"] * options["weight_decay"]
                self.entries[t][i] -= options["lr"] * m_hat / denominators[block]

    def assert_equals(self, tensors, **tolerance):
        for entries, t in zip(self.entries, tensors, strict=True):
            expected = torch.tensor(entries, dtype=torch.float64)
            torch.testing.assert_close(t.detach().double().flatten(), expected, **tolerance)


DEFAULTS = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "eps_inside": False,
    "maximize": False,
}  # fmt: skip


def labels_of(partition):
    label = partition.expand(torch.arange(partition.num_blocks))
    return label.split([shape.numel() for shape in partition.shapes])


def set_gradients(params, scale=1.0):
    """Random ones, of another size for each tensor and a few of them zero."""
    for index, p in enumerate(params):
        noise = torch.randn_like(p) * (torch.rand_like(p) > 0.1)
        p.grad = noise * scale * 10.0 ** (index % 4 - 2)


def assert_follows(optimizer, params, reference, num_steps=50, tolerance=ROUNDING):
    for _ in range(num_steps):
        set_gradients(params)
        optimizer.step()
        reference.step([p.grad for p in params])
        reference.assert_equals(params, **tolerance)
