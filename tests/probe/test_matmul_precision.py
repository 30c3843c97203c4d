"""Hessian-vector products in TF32: what takes part in it, and that nothing else does."""

import pytest
import torch
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, fit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_linf import Landscape, measure_geometry
from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.probe import batch_derivatives

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)
INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
_ADDED = {  # by matrix product, how many leading arguments are only added
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}


def is_tf32():
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


class CutToTF32(TorchDispatchMode):
    """Cut what is multiplied to 10 bits where CUDA may, which errs twice as much as rounding."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _ADDED:
            self.seen.add(is_tf32())
            if is_tf32():
                cut = [a.contiguous().view(torch.int32) & ~0x1FFF for a in args[_ADDED[func] :]]
                args = (*args[: _ADDED[func]], *(bits.view(torch.float32) for bits in cut))
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def loss(module, x):
    return module(x).square().mean()


def landscape_of(precision, num_batches=1):
    batches = list(INPUTS.chunk(num_batches))
    return Landscape(network(), batches, loss=loss, matmul_precision=precision)


needs_settings = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="torch before 2.9 tells the setting of CUDA by other names",
)


@needs_settings
@pytest.mark.parametrize("num_batches", [1, 2])
def test_products_alone_are_in_tf32(num_batches):
    before = torch.backends.cuda.matmul.fp32_precision
    found = {}
    for precision in ("highest", "high"):
        with CutToTF32() as mode, landscape_of(precision, num_batches) as landscape:
            assert landscape.check() is None  # compares H v with differences of gradients
            gradient = landscape.gradient()
            away = landscape.gradient(0.1 * torch.ones_like(gradient))
            assert mode.seen == {False}
            product = landscape.hvp(torch.ones_like(gradient))
            assert mode.seen == {False, precision == "high"}
            assert not is_tf32()
        found[precision] = gradient, away, product
        assert torch.backends.cuda.matmul.fp32_precision == before
    for full, coarse in zip(found["highest"][:2], found["high"][:2], strict=True):
        assert torch.equal(full, coarse)
    full, coarse = found["highest"][2], found["high"][2]
    distance = (coarse - full).norm() / full.norm()
    assert 1e-5 < distance < 3e-3  # the cut takes off up to 2^-10 of each factor


@needs_settings
def test_a_product_that_fails_leaves_no_setting_behind(monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError(is_tf32())

    monkeypatch.setattr(batch_derivatives.GradientRoots, "add_products", fail)
    before = torch.backends.cuda.matmul.fp32_precision
    with landscape_of("high") as landscape:
        with pytest.raises(KeyError, match="True"):
            landscape.hvp(torch.ones(landscape.parameters.num_params))
        assert not is_tf32()
    assert torch.backends.cuda.matmul.fp32_precision == before


@needs_settings
def test_a_report_in_tf32_is_within_its_errors_of_one_in_full():
    reports = {}
    for precision in ("highest", "high"):
        with CutToTF32():
            reports[precision] = measure_geometry(
                network(), [INPUTS], loss=loss, num_probes=8, matmul_precision=precision
            )
    full, coarse = reports["highest"], reports["high"]
    assert full.settings["matmul_precision"] == "highest"
    assert coarse.settings["matmul_precision"] == "high"
    assert coarse.one_one_norm != full.one_one_norm
    # Each factor loses up to 1e-3 of itself, and a product has a few of them one after the other.
    assert coarse.one_one_norm == pytest.approx(full.one_one_norm, rel=5e-3)
    assert coarse.lambda_max == pytest.approx(full.lambda_max, rel=5e-3)
    assert coarse.curvature == pytest.approx(full.curvature, rel=5e-3)
    for name, block in full.smoothness.items():
        assert coarse.smoothness[name].lower == pytest.approx(block.lower, rel=2e-2)
        assert coarse.smoothness[name].operator_upper > 0.995 * block.lower
    assert (coarse.dual_norm, coarse.r_squared) == (full.dual_norm, full.r_squared)
    assert "TF32" in str(coarse)
    assert "TF32" not in str(full)


def test_on_the_cpu_both_are_the_same():
    products = []
    for precision in ("highest", "high"):
        with landscape_of(precision) as landscape:
            products.append(landscape.hvp(torch.ones(landscape.parameters.num_params)))
    assert torch.equal(*products)


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="Landscape: expected `matmul_precision` to be one of 'hi"):
        landscape_of("medium")
    with pytest.raises(ValueError, match=r"LinfSmoothnessMonitor: .*'highest', 'high', got True"):
        LinfSmoothnessMonitor(matmul_precision=True)


@pytest.mark.parametrize("own", ["highest", "high"])
def test_a_monitor_says_it_and_leaves_the_setting_of_the_training(tmp_path, own):
    seen = []

    class Notes(Quadratic):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(torch.get_float32_matmul_precision())

    monitor = LinfSmoothnessMonitor(
        1, num_probes=4, max_overhead=None, on_error="raise", matmul_precision="high"
    )
    torch.set_float32_matmul_precision(own)
    try:
        fit(Notes(), [monitor], tmp_path, max_steps=2)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [own, own]
    assert monitor.last_report.settings["matmul_precision"] == "high"
