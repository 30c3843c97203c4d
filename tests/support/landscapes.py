"""Random nets, quadratics and their dense Hessians, to measure and to compare with brute force."""

import torch
from support import networks
from support.networks import (
    operator_norm_by_restarts,
    smoothness_by_restarts,
    upper_bound_of_smoothness,
)
from torch import nn

from lightning_linf.probe import measure_geometry

ROUNDING = 1e-9
NAMES = ("coordinate", "row", "column", "tensor", "module", "global")
DIM = 42  # of a Quadratic: 4 x 5, 4 and 6 x 3
EXACT = {"rtol": 1e-6, "atol": 1e-12}  # dense double backward against products with unit vectors


def dense(module, batch, loss):
    """Gradient (d,) and Hessian (d, d)."""
    hessian = networks.dense_hessian(module, lambda: loss(module, batch)).detach()
    return gradient_of(module, batch, loss), (hessian + hessian.T) / 2


def gradient_of(module, batch, loss):
    parts = torch.autograd.grad(loss(module, batch), list(module.parameters()))
    return torch.cat([part.reshape(-1) for part in parts])


def random_net(seed):
    torch.manual_seed(seed)
    module, batch, loss = networks.random_mlp(seed)
    return module, batch, loss, *dense(module, batch, loss)


class Quadratic(nn.Module):
    """Loss theta^T H theta / 2 + g^T theta, with theta in the tensors of two linear maps."""

    def __init__(self, hessian, slope=None):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(3, 6, bias=False)
        self.to(hessian.dtype)
        self.hessian = hessian
        self.slope = torch.zeros_like(hessian[0]) if slope is None else slope

    def theta(self):
        return torch.cat([p.reshape(-1) for p in self.parameters()])

    def forward(self):
        theta = self.theta()
        return theta @ self.hessian @ theta / 2 + self.slope @ theta


def value_of(module, batch):
    return module()


def measure(module, **options):
    return measure_geometry(module, [torch.zeros(1)], loss=value_of, **options)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def indefinite(dim=DIM):
    matrix = normal(dim, dim)
    return matrix + matrix.T


def check_brackets(report, hessian, partition, *, num_restarts, num_probes):
    """Compare a bracket with what brute force finds; return lower end over it."""
    block = report.smoothness[partition.name]
    found = operator_norm_by_restarts(hessian, partition, num_restarts)
    where = (partition.name, block)
    # 0.1 %: what the restarts may miss. The lower end is a value reached, so it cannot be too high.
    assert block.lower <= found * 1.001, where
    norm = max(found, block.lower)
    assert norm <= block.operator_upper * (1 + ROUNDING), where
    assert block.lower <= block.operator_upper, where
    assert block.lower <= block.upper, where
    assert block.lower <= block.adaptive_lower <= block.adaptive_upper, where
    smoothness = smoothness_by_restarts(hessian, partition, num_restarts)
    smoothness = max(smoothness, norm)
    # H(Phi) is at most the estimate within 3 stated errors and its bias, 2 % at 16 probes.
    bias = 1.02 if block.upper_relative_error else 1.0
    upper = block.upper * bias * (1 + 3 * block.upper_relative_error)
    assert smoothness <= upper * (1 + ROUNDING), where
    bound = upper_bound_of_smoothness(hessian, partition)
    assert smoothness <= bound * (1 + ROUNDING)
    if num_probes < report.num_params and partition.name == "coordinate":
        assert block.upper == report.one_one_norm
        exact = float(hessian.abs().sum())
        assert abs(block.upper / exact - 1) <= 3.5 * block.upper_relative_error + 0.02
    return block.lower / norm


class Dense:
    """A dense map of coordinates."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __repr__(self):
        return "Dense()"

    def apply(self, vector):
        return self.matrix @ vector

    def apply_transpose(self, vector):
        return self.matrix.T @ vector
