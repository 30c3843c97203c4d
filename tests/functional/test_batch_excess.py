"""What the choice of batches adds to the (1,1)-norm, against Hessians of batches that are known."""

from dataclasses import replace

import pytest
import torch
from support import networks
from support.reports import words
from torch import nn

from lightning_linf import GeometryReport
from lightning_linf.functional import batch_excess, cauchy
from lightning_linf.probe import Landscape, ProbeError, measure_geometry


class Point(nn.Module):
    """Parameters theta, for the loss theta^T H theta / 2 on a batch of matrices H."""

    def __init__(self, dim):
        super().__init__()
        self.line = nn.Linear(1, dim, bias=False).double()


def loss(module, batch):
    theta = module.line.weight[:, 0]
    return (batch @ theta @ theta).mean() / 2


def symmetric(*shape):
    matrix = torch.randn(*shape, dtype=torch.float64)
    return (matrix + matrix.mT) / 2**0.5


def report_of(batches, num_probes):
    return measure_geometry(
        Point(batches[0].shape[-1]), batches, loss=loss, partitions=(), num_probes=num_probes
    )


def norm(matrices):
    return float(torch.cat(matrices).mean(dim=0).abs().sum())


def by_hand(batches):
    """Excess of the batches of even and of odd number over all, weighted by numbers of samples."""
    halves = batches[0::2], batches[1::2]
    counts = [sum(map(len, half)) for half in halves]
    mean = sum(n * norm(half) for n, half in zip(counts, halves, strict=True)) / sum(counts)
    return mean / norm(batches) - 1


@pytest.mark.parametrize("counts", [(1, 1), (3, 1), (1, 2, 3), (2, 2, 2, 2)])
def test_excess_is_that_of_the_halves_of_the_batches(counts):
    signal = symmetric(12, 12)
    batches = [signal + symmetric(n, 12, 12) for n in counts]
    exact = report_of(batches, num_probes=16)  # as many as parameters: no error of probes
    assert exact.one_one_norm == pytest.approx(norm(batches), rel=1e-9)
    assert exact.one_one_norm_batch_excess == pytest.approx(by_hand(batches), rel=1e-9)


def test_excess_from_probes_is_near_that_of_the_halves():
    """Most of the probes' error is common to the halves and the whole."""
    signal = symmetric(60, 60)
    errors = []
    for _ in range(8):
        batches = [signal + 2 * symmetric(2, 60, 60) for _ in range(3)]
        report = report_of(batches, num_probes=16)
        errors.append(report.one_one_norm_batch_excess - by_hand(batches))
        joined = report_of([torch.cat(batches)], num_probes=16)
        assert report.num_hvps == joined.num_hvps  # the halves cost none
    # That of the norm itself is 0.1 at 16 probes.
    assert torch.tensor(errors).square().mean().sqrt() < 0.04


@pytest.mark.parametrize(
    "num_batches", [2, *(pytest.param(m, marks=pytest.mark.slow) for m in (3, 4, 9))]
)
def test_excess_is_the_bias_of_the_norm_where_noise_is_below_the_spread_of_entries(num_batches):
    noise, dim, trials = 0.7, 12, 40
    found, biases = [], []
    for _ in range(trials):
        signal = symmetric(1, dim, dim)
        batches = [signal + noise * symmetric(1, dim, dim) for _ in range(num_batches)]
        report = report_of(batches, num_probes=16)
        found.append(report.one_one_norm_batch_excess)
        biases.append(report.one_one_norm / norm([signal]) - 1)
    found, biases = torch.tensor(found), torch.tensor(biases)
    # Entries have a variance of 1 and noise one of noise^2 / M, so that absolute values grow by
    excess = (1 + noise**2 / num_batches) ** 0.5 - 1
    assert abs(float(biases.mean()) - excess) < 4 * float(biases.std()) / trials**0.5
    # The jackknife is right to first order in 1/M, as here to a quarter.
    error = 4 * float(found.std()) / trials**0.5
    assert abs(float(found.mean()) - excess) < error + 0.25 * excess


def test_one_batch_has_no_halves_and_the_text_says_what_that_means():
    batches = [symmetric(3, 12, 12)]
    report = report_of(batches, num_probes=8)
    assert report.one_one_norm_batch_excess is None
    assert "(1,1)-norm of one microbatch: higher than the (1,1)-norm of all data" in words(
        str(report)
    )


def test_text_and_file_have_the_excess_and_files_without_it_are_read():
    report = report_of([symmetric(1, 12, 12) for _ in range(2)], num_probes=16)
    least, most = (round(100 * f * report.one_one_norm_batch_excess) for f in (1, 1 + 2**0.5))
    assert f"(1,1)-norm: roughly {least} to {most} % higher than the" in words(str(report))
    none = replace(report, one_one_norm_batch_excess=-0.01)
    assert "(1,1)-norm: not higher on halves of the batches" in words(str(none))
    data = report.to_dict()
    assert GeometryReport.from_dict(data).to_dict() == data
    del data["one_one_norm_batch_excess"]
    older = GeometryReport.from_dict(data)
    assert older.one_one_norm_batch_excess is None
    assert "by an amount that was not measured" in words(str(older))


def test_products_of_halves_are_those_of_their_hessians():
    module, (x, y), loss = networks.mlp()
    batches = [(x[:3], y[:3]), (x[3:7], y[3:7]), (x[7:], y[7:])]
    first = (torch.cat([x[:3], x[7:]]), torch.cat([y[:3], y[7:]]))
    hessians = [
        networks.dense_hessian(module, lambda b=batch: loss(module, b))
        for batch in (first, batches[1])
    ]
    vectors = torch.randn(5, len(hessians[0]), dtype=torch.float64)
    for memory_gib in (1.0, 1e-9):  # all products in one pass, and one a pass
        with Landscape(module, batches, loss=loss, memory_gib=memory_gib) as landscape:
            share = landscape.first_half()
            assert share == 8 / 12
            both = landscape.hvp_of_halves(vectors, share)
            assert landscape.num_hvps == 5
            whole = landscape.hvp(vectors)
        expected = torch.stack([vectors @ hessian for hessian in hessians])
        torch.testing.assert_close(both, expected, rtol=1e-9, atol=1e-11)
        mean = share * both[0] + (1 - share) * both[1]
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-11)


def test_batches_without_weight_are_refused():
    class Weighted(nn.Linear):
        def probe_weight(self, batch):
            return 0.0

    x = torch.ones(2, 1)
    landscape = Landscape(Weighted(1, 1), [x, x], loss=lambda m, b: m(b).square().mean())
    with landscape, pytest.raises(ProbeError, match=r"batches of positive weight, got 0\.0"):
        landscape.first_half()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_scale_of_the_products_changes_nothing(scale):
    matrices = torch.stack([symmetric(20, 20) for _ in range(2)])
    probes = torch.stack([cauchy(20, seed=0, probe=k, dtype=torch.float64) for k in range(8)])
    products = probes @ torch.stack([*matrices, matrices.mean(dim=0)])  # (3, 8, 20)
    expected = batch_excess(products.abs().log().sum(dim=1), 8, 0.5)
    found = batch_excess((scale * products).float().abs().log().sum(dim=1), 8, 0.5)
    assert found == pytest.approx(expected, rel=1e-3)


def test_zero_hessians_have_no_excess():
    assert batch_excess(torch.full((3, 5), -torch.inf), 8, 0.5) is None
