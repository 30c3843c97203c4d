"""Parameters that an optimizer steps and no module lists are measured, or their lack is said."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.optim import BlockwiseAdam
from lightning_linf.partition import Partition

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Uncertainty:
    """A learnable weight of the loss, in a plain class."""

    def __init__(self):
        self.s = nn.Parameter(torch.zeros(1))


class Weighted(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.line, self.criterion = nn.Linear(3, 1), Uncertainty()

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.line(batch[0]), batch[1])
        return (100 * loss * torch.exp(-self.criterion.s) + self.criterion.s).sum()

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), self.criterion.s], lr=1e-4)


def fit(module, monitor, tmp_path):
    trainer = lightning.Trainer(
        max_steps=2,
        callbacks=[monitor],
        accelerator="cpu",
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(32, 3), torch.randn(32, 1)), 8))
    return trainer


def test_heterogeneity_counts_them_under_their_place_in_the_optimizer(tmp_path):
    monitor, module = GradientHeterogeneityMonitor(2, on_error="raise"), Weighted()
    fit(module, monitor, tmp_path)
    entry = monitor.history[-1]
    assert entry["tensor_names"] == ["line.weight", "line.bias", "optimizer.0.2"]
    gradient = torch.cat([p.grad.flatten() for p in [*module.parameters(), module.criterion.s]])
    density = gradient.abs().sum() ** 2 / (len(gradient) * gradient.square().sum())
    assert entry["density"] == pytest.approx(density.item(), rel=1e-5)


def test_noise_counts_them_too(tmp_path):
    monitor, module = GradientNoiseMonitor(1, on_error="raise"), Weighted()
    seen = []
    module.on_after_backward = lambda: seen.append(
        torch.cat([p.grad.flatten().clone() for p in [*module.parameters(), module.criterion.s]])
    )
    fit(module, monitor, tmp_path)
    assert monitor.history[0]["tensor_names"][-1] == "optimizer.0.2"
    each = torch.stack([seen[0], seen[1] - seen[0]]) * 2  # Lightning halves each of two
    trace = 8 * each.var(dim=0).sum()  # of one sample, from microbatches of 8
    assert monitor.history[0]["noise_trace"] == pytest.approx(trace.item(), rel=1e-4)


def test_smoothness_holds_them_constant_and_says_so(tmp_path):
    monitor = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise", max_overhead=None)
    with pytest.warns(UserWarning, match=r"named_parameters\(\) does not list: of shape \(1,\)\."):
        fit(Weighted(), monitor, tmp_path)
    assert monitor.history[-1]["tensor_names"] == ["line.weight", "line.bias"]


def test_a_partition_of_the_module_does_not_take_them():
    module = Weighted()
    params = [*module.named_parameters(), ("s", module.criterion.s)]
    with pytest.raises(ValueError, match=r"got s of shape \(1,\), which is not in it"):
        BlockwiseAdam(params, partition=Partition.of(module, "tensor"))
