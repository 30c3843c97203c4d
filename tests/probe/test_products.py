"""Products with the Hessian that are wrong or not finite are refused."""

import pytest
import torch
from support.landscapes import random_net
from torch import nn

from lightning_linf.probe import Landscape, ProbeError, measure_geometry, measure_landscape
from lightning_linf.probe.partitions import choose_partitions


def test_products_that_are_not_finite_are_refused():
    # At zero x^1.5 has gradient 0 and an infinite second derivative.
    module = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    with pytest.raises(ProbeError, match="expected finite Hessian-vector products, got inf or NaN"):
        measure_geometry(
            module, [torch.ones(1, 2).double()], loss=lambda m, x: m(x).abs().pow(1.5).sum()
        )


class WrongProduct(torch.autograd.Function):
    """A product whose backward takes one factor for a constant."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y.detach(), grad * x


@pytest.mark.parametrize("factor", [1e-28, 1.0, 1e36])
@pytest.mark.parametrize("num_probes", [16, 256])
def test_wrong_second_derivatives_are_noticed(num_probes, factor):
    module, batch, *_ = random_net(18)
    module.float()

    def loss(module, batch):
        outputs = module(batch[0].float())
        return factor * WrongProduct.apply(outputs[:, 0], outputs[:, 1]).mean()

    with pytest.raises(ProbeError, match=r"for a random v they differ by \d\d\.\d%"):
        measure_geometry(module, [batch], loss=loss, num_probes=num_probes)
    with (
        pytest.raises(ProbeError, match="expected a symmetric Hessian"),
        Landscape(module, [batch], loss=loss) as landscape,
    ):
        measure_landscape(landscape, choose_partitions(module, []), num_probes=num_probes)


def test_derivatives_that_float32_rounds_away_are_refused_with_the_remedy():
    torch.manual_seed(0)
    module = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(19 * torch.eye(3) + 0.3 * torch.randn(3, 3))
    x, labels = torch.eye(3) + 0.1 * torch.randn(3, 3), torch.arange(3)

    def loss(module, x):  # about 2e-8, from probabilities that are 1 but for their last bits
        return nn.functional.cross_entropy(module(x), labels)

    with pytest.raises(ProbeError, match=r"rounding: .* of float32 .* in float64\)"):
        measure_geometry(module, [x], loss=loss, num_probes=4)
    measure_geometry(module.double(), [x.double()], loss=loss, num_probes=4)


def test_an_autocast_that_rounds_derivatives_away_is_named():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, labels = torch.randn(8, 4), torch.arange(8) % 3

    def loss(module, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = module(x)
        return nn.functional.cross_entropy(outputs.float(), labels)

    with (
        pytest.raises(ProbeError, match=r"torch\.autocast in the loss"),
        Landscape(module, [x], loss=loss) as landscape,
    ):
        measure_landscape(landscape, choose_partitions(module, []), num_probes=256)
