"""Maps of coordinates as dense matrices, and small networks to train under them."""

import copy
from dataclasses import dataclass

import torch
from support import networks
from torch import nn
from torch.nn.utils import parameters_to_vector

from lightning_linf.optim import Reparameterized
from lightning_linf.reparam import (
    BoundReparameterization,
    Reparameterization,
    Rotation,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # float64 after 50 steps, each of which rounds
SCOPES = ["global", "tensor", "row", "column"]


@dataclass(frozen=True)
class BoundDense(BoundReparameterization):
    """Any matrix: its transpose is not its inverse."""

    matrix: torch.Tensor

    @property
    def num_params(self):
        return len(self.matrix)

    def inverse(self):
        return BoundDense(torch.linalg.inv(self.matrix))

    def _multiply(self, vector):
        return self.matrix.to(vector) @ vector

    def _multiply_transpose(self, vector):
        return self.matrix.to(vector).T @ vector

    def _multiply_transpose_squared(self, vector):
        return self.matrix.to(vector).T.square() @ vector


@dataclass(frozen=True)
class Dense(Reparameterization):
    seed: int = 0
    only: str | None = None

    def _bind(self, shapes, stream):
        size = sum(shape.numel() for shape in shapes)
        generator = torch.Generator().manual_seed(self.seed + 7 * stream)
        noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return BoundDense(torch.eye(size, dtype=torch.float64) + 0.3 * noise / size**0.5)


def dense(linear_map, size):
    """Its matrix, from its products with unit vectors."""
    return torch.stack([linear_map.apply(row) for row in torch.eye(size).double()], dim=1)


def weights(module):
    return parameters_to_vector(module.parameters()).detach().clone()


def two(seed=0):
    """Twice the same network, with its batch and loss."""
    torch.manual_seed(seed)
    module, batch, loss = networks.random_mlp(seed)
    return module, copy.deepcopy(module), lambda m: loss(m, batch)


def backward(module, loss):
    module.zero_grad()
    value = loss(module)
    value.backward()
    return value


def train(module, optimizer, loss, num_steps=50):
    for _ in range(num_steps):
        backward(module, loss)
        optimizer.step()
    return weights(module)


def grouped(module, num_groups):
    """Named parameters dealt to groups that differ in learning rate and weight decay."""
    named = list(module.named_parameters())
    return [
        {
            "params": named[i::num_groups],
            "lr": 0.01 / (i + 1),
            **({"weight_decay": 0.1 * i} if num_groups > 1 else {}),
        }
        for i in range(num_groups)
    ]


def rotated_adam(module, reparameterization=None, **options):
    return Reparameterized(
        module.parameters(),
        lambda p: torch.optim.Adam(p, **{"lr": 0.01, **options}),
        reparameterization or Rotation(seed=0),
    )


def parameter(dtype=torch.float32, device=None):
    return nn.Parameter(torch.zeros(3, dtype=dtype, device=device))


def sgd(p):
    return torch.optim.SGD(p, lr=0.1)
