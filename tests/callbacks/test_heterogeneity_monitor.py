"""What GradientHeterogeneityMonitor reads, and when."""

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, TwoOptimizers, fit

from lightning_linf import quantities
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
)

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)


def test_heterogeneity_is_that_of_the_gradient_of_the_step(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    trainer = fit(Quadratic(), [monitor], tmp_path)
    (entry,) = monitor.history
    # the gradient is (1, 2, 0, -20, 3, 3): norm1 29, norm2^2 423
    assert entry["step"] == 0
    assert entry["density"] == pytest.approx(29**2 / (6 * 423), rel=1e-12)
    assert entry["zero_fraction"] == 1 / 6
    assert entry["num_nonfinite"] == 0.0
    assert entry["median_log10_grad"] == pytest.approx(math.log10(3), abs=0.0134)
    assert entry["tensor_names"] == ["theta", "phi"]
    torch.testing.assert_close(
        entry["per_tensor"]["density"], torch.tensor([23**2 / (4 * 405), 1.0])
    )
    assert trainer.callback_metrics[quantities.DENSITY.tag] == torch.tensor(entry["density"])


def test_gradients_are_read_before_clipping(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    fit(Quadratic(), [monitor], tmp_path, gradient_clip_val=1e-3)
    assert monitor.history[0]["median_log10_grad"] == pytest.approx(math.log10(3), abs=0.0134)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_read_unscaled_under_a_gradient_scaler(tmp_path, fused):
    class Scaled(Quadratic):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr, fused=fused)

    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    plugin = MixedPrecision("16-mixed", "cpu")
    trainer = fit(Scaled(), [monitor], tmp_path, plugins=[plugin])
    assert trainer.precision_plugin.scaler.get_scale() > 1.0
    assert monitor.history[0]["median_log10_grad"] == pytest.approx(math.log10(3), abs=0.0134)


def test_each_of_several_optimizers_has_its_own_tags(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    trainer = fit(TwoOptimizers(), [monitor], tmp_path, max_steps=2)
    assert [entry["tensor_names"] for entry in monitor.history] == [["theta"], ["phi"]]
    assert monitor.history[1]["density/optimizer1"] == 1.0
    assert quantities.DENSITY.tag + "/optimizer0" in trainer.callback_metrics


def test_nonfinite_gradients_are_counted_and_survived(tmp_path):
    class Infinite(Quadratic):
        def on_after_backward(self):
            self.theta.grad[0] = math.nan
            self.phi.grad[1] = math.inf

    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    with pytest.warns(UserWarning, match="Monitor: ") as seen:
        fit(Infinite(), [monitor], tmp_path, max_steps=3)
    (message,) = [str(w.message) for w in seen if "HeterogeneityMonitor" in str(w.message)]
    assert "2 entries of the gradient are inf or NaN at step 0, first in theta" in message
    assert monitor.history[0]["num_nonfinite"] == 2.0
    assert monitor.history[0]["density"] == pytest.approx(25**2 / (4 * 413))
