"""A law without a free parameter: full-batch training at a constant rate settles near an edge of 1.

Cohen et al., arXiv:2103.00065 and 2207.14484. ``benchmarks/edge.py`` shows more of it.
"""

import pytest
import torch
from torch import nn

from lightning_linf import Landscape, Rotation
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized
from lightning_linf.probe.edge import measure_edge_of_landscape

pytestmark = pytest.mark.slow  # some seconds for each optimizer

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.2),
    "momentum": lambda p: torch.optim.SGD(p, 0.4, momentum=0.9),
    "Nesterov's momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.004),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.004, weight_decay=0.1),
    "BlockwiseAdam": lambda p: BlockwiseAdam(p, 0.004),
    "AdaSGD": lambda p: AdaSGD(p, 0.004),
    "rotated Adam": lambda p: Reparameterized(
        p, lambda q: torch.optim.Adam(q, 0.002), Rotation(seed=0)
    ),
}


def squared_error(module, batch):
    x, y = batch
    return (module(x) - y).square().mean()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_settles_at_the_edge(kind):
    module = nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    )
    batch = torch.randn(512, 8), torch.randn(512, 2).sign()
    optimizer = OPTIMIZERS[kind](list(module.parameters()))
    edges = []
    for step in range(2_000):
        optimizer.zero_grad()
        loss = squared_error(module, batch)
        loss.backward()
        optimizer.step()
        if step == 20 or step % 100 == 99:
            with Landscape(module, [batch], loss=squared_error) as landscape:
                edges.append(measure_edge_of_landscape(landscape, [optimizer]).edge)
    assert edges[0] < 0.6  # so it does go there
    settled = torch.tensor(edges[-8:])
    # Blockwise second moments let it swing, within 0.12 below 1.
    assert settled.min() > 0.85
    assert settled.max() < 1.06
    assert 0.93 < settled.mean() < 1.03
