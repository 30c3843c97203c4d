"""Two gloo processes on the CPU give the numbers of one process on all the data."""

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from support import networks
from support.ranks import in_two_processes
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_linf import Geometry
from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    LinfSmoothnessMonitor,
    SwapOptimizer,
)
from lightning_linf.functional import cauchy
from lightning_linf.functional.noise import noise_compute
from lightning_linf.metrics import GradientHeterogeneity, OneOneNorm
from lightning_linf.optim import Reparameterized
from lightning_linf.probe import Landscape, ProbeError
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.noise import measure_noise, noise_of_batches
from lightning_linf.probe.partitions import choose_partitions

pytestmark = pytest.mark.slow  # each test forks two processes


def sum_over_ranks(tensor):
    dist.all_reduce(tensor)
    return tensor


def test_smoothness_over_two_ranks_equals_that_of_the_joined_batch(tmp_path):
    module, (x, y), loss = networks.mlp()
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]  # of different sizes

    partitions = choose_partitions(module, ["row", "tensor"])

    def on_rank(rank):
        with Landscape(module, [parts[rank]], loss=loss, reduce=sum_over_ranks) as landscape:
            noise = measure_noise(landscape, partitions)
            return measure_landscape(landscape, partitions, num_probes=8, noise=noise)

    results = in_two_processes(on_rank, tmp_path)
    with Landscape(module, [(x, y)], loss=loss) as landscape:
        expected = measure_landscape(landscape, partitions, num_probes=8)
    with Landscape(module, parts, loss=loss) as landscape:
        of_parts = measure_landscape(landscape, partitions, num_probes=8)
        sums = noise_of_batches(landscape)
        noise = noise_compute(sums, landscape.parameters.sizes, {p.name: p for p in partitions})
    for result in results:
        assert result.one_one_norm == pytest.approx(expected.one_one_norm, rel=1e-9)
        assert expected.one_one_norm_batch_excess is None
        excess = of_parts.one_one_norm_batch_excess  # one batch a rank: a half each
        assert result.one_one_norm_batch_excess == pytest.approx(excess, rel=1e-9)
        errors = of_parts.step_advantage_relative_error
        assert result.step_advantage_relative_error == pytest.approx(errors, rel=1e-9)
        assert result.smoothness["row"].upper == pytest.approx(expected.smoothness["row"].upper)
        assert result.noise.trace == pytest.approx(float(noise.trace), rel=1e-9)
        expected_noise = {name: float(value) for name, value in noise.block_noise.items()}
        assert result.noise.block_noise == pytest.approx(expected_noise, rel=1e-9)
        assert result.lambda_max == pytest.approx(expected.lambda_max, rel=1e-9)
        assert result.loss == pytest.approx(expected.loss, rel=1e-12)
        assert result.num_hvps == expected.num_hvps


def test_an_error_on_one_rank_ends_in_an_error_on_both(tmp_path):
    module, batch, loss = networks.mlp()

    def on_rank(rank):
        def loss_here(module, batch):
            return loss(module, batch) / (rank - 1 if rank else 0)  # infinite on rank 0

        with Landscape(module, [batch], loss=loss_here, reduce=sum_over_ranks) as landscape:
            return landscape.gradient()

    first, second = in_two_processes(on_rank, tmp_path)
    assert isinstance(first, ProbeError)
    assert isinstance(second, (ProbeError, ZeroDivisionError))


@pytest.mark.parametrize("place", ["on entering", "between products", "before leaving"])
def test_a_rank_that_fails_outside_a_pass_does_not_leave_the_other_waiting(tmp_path, place):
    module, batch, loss = networks.mlp()

    def on_rank(rank):
        landscape = Landscape(module, [batch], loss=loss, reduce=sum_over_ranks)
        if rank == 1 and place == "on entering":
            module[0].weight = nn.Parameter(torch.zeros(8, 5, dtype=torch.complex64))
        with landscape:
            vector = torch.ones(landscape.parameters.num_params, dtype=torch.float64)
            landscape.hvp(vector)
            if rank == 1 and place == "between products":
                raise ValueError("on one rank")
            landscape.hvp(vector)
            if rank == 1 and place == "before leaving":
                raise ValueError("on one rank")
        return "measured"

    first, second = in_two_processes(on_rank, tmp_path)
    assert isinstance(first, ProbeError)
    assert "another rank failed" in str(first)
    assert isinstance(second, (ProbeError, ValueError))


def test_metrics_over_two_ranks_equal_one_over_everything(tmp_path):
    gradients = torch.randn(4, 3, 50)
    hessian = torch.randn(20, 20, dtype=torch.float64)
    hessian = hessian + hessian.T
    probes = [cauchy(20, seed=1, probe=k, dtype=torch.float64) for k in range(8)]

    def measure(rank, world_size):
        spread = GradientHeterogeneity(num_tensors=3)
        for step in range(rank, 4, world_size):
            spread.update(list(gradients[step]))
        norm = OneOneNorm([12, 8], num_probes=8, seed=1, dtype=torch.float64)
        for k in range(rank, 8, world_size):
            norm.update(hessian @ probes[k], k)
        per_tensor, whole = spread.compute()
        return [t.tolist() for t in (*per_tensor, *whole, *norm.compute())]

    results = in_two_processes(lambda rank: measure(rank, 2), tmp_path)
    expected = measure(0, 1)
    for result in results:
        for ours, alone in zip(result, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(alone))


class Regression(lightning.LightningModule):
    def __init__(self, dropout):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(5)
        data = TensorDataset(
            torch.randn(64, 4, generator=generator), torch.randn(64, 1, generator=generator)
        )
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(data, world_size, rank, shuffle=False)
        return DataLoader(data, batch_size=8 // world_size, sampler=sampler)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)  # Adam would enlarge rounding


def _train(tmp_path, monitors, world_size, dropout=0.2):
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        devices=world_size,
        strategy=strategy if world_size > 1 else "auto",
        callbacks=monitors,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    )
    module = Regression(dropout)
    trainer.fit(module)
    return trainer, module


def test_training_under_ddp_is_bit_identical_and_measures_the_mean_over_ranks(tmp_path):
    def monitors():
        return [
            GradientHeterogeneityMonitor(2, on_error="raise"),
            LinfSmoothnessMonitor(2, num_probes=8, max_overhead=100.0, on_error="raise"),
            EdgeMonitor(2, max_overhead=None, on_error="raise"),
        ]

    trainer, with_monitors = _train(tmp_path, monitors(), 2)
    _, without = _train(tmp_path, [], 2)
    for ours, plain in zip(with_monitors.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, plain)
    # Dropout draws other masks than one process on the joined batch would, so train without it.
    trainer, _ = _train(tmp_path, monitors(), 2, dropout=0.0)
    alone, _ = _train(tmp_path, monitors(), 1, dropout=0.0)
    exact = ("density", "gini", "zero_fraction", "num_nonfinite", "probe_loss", "lambda_max")
    edge = ("edge", "step_gain", "best_step_multiple")
    for name in (*exact, "one_one_norm_per_param", "probe_hvps", *edge):
        ours, theirs = (t.callback_metrics[f"geometry/{name}"].item() for t in (trainer, alone))
        assert ours == pytest.approx(theirs, rel=1e-4), name  # float32


class Ranks(lightning.Callback):
    """Say how far the ranks' weights are apart at the end, and that they were swapped."""

    def on_train_end(self, trainer, module):
        weights = nn.utils.parameters_to_vector(module.parameters()).detach()
        extremes = [weights.clone(), -weights]
        for extreme in extremes if trainer.world_size > 1 else []:
            dist.all_reduce(extreme, dist.ReduceOp.MAX)
        is_swapped = isinstance(trainer.optimizers[0], Reparameterized)
        trainer.callback_metrics.update(
            spread=sum(extremes).abs().max(), swapped=torch.tensor(is_swapped)
        )


def test_a_swap_to_rotated_adam_on_two_ranks_is_that_on_the_joined_batch(tmp_path):
    # Adam would enlarge rounding in small gradients but for a large eps.
    adam = Geometry("adam", lr=0.01, options={"eps": 1e-2})
    rotated = Geometry("adam", rotation="global")
    modules = []
    for world_size in (2, 1):
        callbacks = [SwapOptimizer(1, adam), SwapOptimizer(3, rotated), Ranks()]
        trainer, module = _train(tmp_path, callbacks, world_size, dropout=0.0)
        assert trainer.callback_metrics["spread"] == 0.0
        assert trainer.callback_metrics["swapped"]
        modules.append(module)
    _, unswapped = _train(tmp_path, [], 1, dropout=0.0)
    for ours, alone, other in zip(*(m.parameters() for m in (*modules, unswapped)), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-6)  # float32
        assert not torch.allclose(ours, other, rtol=1e-3)
