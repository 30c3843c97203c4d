"""The same numbers, and the same bits of training, on a CUDA device."""

import copy

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from support import bit_identity, networks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import Rotation
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.functional import cauchy, heterogeneity, rotate
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.partition import Partition
from lightning_linf.probe import Landscape, measure_geometry, probe_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(*bit_identity.IGNORED_WARNINGS),
]
DEVICE = "cuda"


def moved(batch):
    if isinstance(batch, torch.Tensor):
        return batch.to(DEVICE)
    return tuple(t.to(DEVICE) for t in batch)


@pytest.mark.parametrize("name", networks.ALL)
def test_products_equal_those_of_the_cpu(name):
    module, batch, loss = networks.ALL[name]()
    with Landscape(module, [batch], loss=loss) as landscape:
        vector = torch.randn(landscape.parameters.num_params, dtype=torch.float64)
        expected = landscape.hvp(vector)
    with Landscape(module.to(DEVICE), [moved(batch)], loss=loss) as landscape:
        product = landscape.hvp(vector.to(DEVICE)).cpu()
    result = measure_geometry(module, [moved(batch)], loss=loss, num_probes=8)
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-10)
    assert result.one_one_norm > 0


@pytest.mark.parametrize("name", networks.ALL)
def test_products_do_not_take_part_in_tf32(name):
    module, batch, loss = networks.ALL[name]()
    module, batch = module.float().to(DEVICE), moved(batch)
    if not isinstance(batch, torch.Tensor):
        batch = tuple(t.float() if t.is_floating_point() else t for t in batch)
    products = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            with Landscape(module, [batch], loss=loss) as landscape:
                products.append(landscape.hvp(torch.ones(landscape.parameters.num_params).cuda()))
        finally:
            torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(*products, rtol=1e-5, atol=1e-6)


def test_heterogeneity_equals_that_of_the_cpu():
    gradient = torch.randn(10_000).exp() * torch.randn(10_000)
    for ours, expected in zip(
        heterogeneity(gradient.to(DEVICE)), heterogeneity(gradient), strict=True
    ):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-12, atol=0.0)


def test_far_tails_of_cauchy_probes_are_there():
    draws = cauchy(10_000_000, seed=0, probe=0, device=DEVICE).abs()
    # P(|c| > 1e6) = 6.4e-7: 6.4 expected, and none at all has a chance of 0.002
    assert (draws > 1e6).any()


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_rotations_equal_those_of_the_cpu(strength):
    x = torch.randn(100_001)
    ours = rotate(x.to(DEVICE), seed=3, strength=strength).cpu()
    torch.testing.assert_close(ours, rotate(x, seed=3, strength=strength), rtol=1e-5, atol=1e-5)


OPTIMIZERS = {
    "tensor": lambda net: BlockwiseAdam(net.named_parameters(), lr=1e-2, weight_decay=0.1),
    "row": lambda net: BlockwiseAdam(
        net.named_parameters(), lr=1e-2, partition=Partition.of(net, "row")
    ),
    "coordinate": lambda net: BlockwiseAdam(net.parameters(), lr=1e-2, partition="coordinate"),
    "adasgd": lambda net: AdaSGD(net.parameters(), lr=1e-2),
    "signum": lambda net: Signum(net.parameters(), lr=1e-2),
    "rotated": lambda net: Reparameterized(
        net.parameters(), lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True), Rotation(seed=0)
    ),
}


def net():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(7, 9), nn.LayerNorm(9), nn.Linear(9, 3)).double()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_those_of_the_cpu(name):
    ours, theirs = net().to(DEVICE), net()
    optimizers = [OPTIMIZERS[name](module) for module in (ours, theirs)]
    for _ in range(20):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.to(DEVICE)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["tensor", "row", "coordinate"])
def test_a_captured_step_is_the_same(name):
    partitions = {"tensor": "tensor", "coordinate": "coordinate"}
    modules = [net().to(DEVICE) for _ in range(2)]
    captured, plain = (
        BlockwiseAdam(
            module.named_parameters(),
            lr=torch.tensor(1e-2, device=DEVICE),
            partition=partitions.get(name) or Partition.of(module, name),
            capturable=True,
        )
        for module in modules
    )
    for p, q in zip(*(module.parameters() for module in modules), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    for _ in range(2):  # makes the state, and warms up
        captured.step()
        plain.step()
    graph = torch.cuda.CUDAGraph()
    before = copy.deepcopy([p.detach() for p in modules[0].parameters()])
    with torch.cuda.graph(graph):
        captured.step()
    assert all(map(torch.equal, before, (p.detach() for p in modules[0].parameters())))
    for _ in range(3):
        graph.replay()
        plain.step()
    for p, q in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def deterministic_traces(tmp_path, monkeypatch, callback_sets, **options):
    torch.use_deterministic_algorithms(True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return [
            bit_identity.trace(
                *bit_identity.train(tmp_path, callbacks, accelerator="cuda", devices=1, **options)
            )
            for callbacks in callback_sets
        ]
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
def test_training_with_monitors_is_bit_identical(tmp_path, precision, monkeypatch):
    callbacks = bit_identity.monitors(), []
    traces = deterministic_traces(tmp_path, monkeypatch, callbacks, precision=precision)
    bit_identity.assert_same(*traces)


def test_compiled_training_with_monitors_is_bit_identical(tmp_path, monkeypatch):
    class Compiled(bit_identity.Everything):
        def __init__(self):
            super().__init__()
            self.body.compile()

    monitors = [*bit_identity.monitors(), GradientNoiseMonitor(1, on_error="raise")]
    options = {"make": Compiled, "accumulate_grad_batches": 2, "steps": 8}
    traces = deterministic_traces(tmp_path, monkeypatch, (monitors, []), **options)
    bit_identity.assert_same(*traces)
    assert all(len(monitor.history) == 8 for monitor in monitors)


class Regression(lightning.LightningModule):
    """Sharded where the strategy is that of sharded models."""

    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1)
        )

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def train_dataloader(self):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def histories(tmp_path, strategy, module=None, **options):
    monitors = [
        GradientHeterogeneityMonitor(2, on_error="raise"),
        LinfSmoothnessMonitor(2, num_probes=8, on_error="raise", max_overhead=None),
    ]
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="gpu",
        devices=1,  # NCCL wants a GPU for each rank
        strategy=strategy,
        callbacks=monitors,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module or Regression())
    return [monitor.history for monitor in monitors]


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_strategies_over_nccl_give_the_numbers_of_one_device(tmp_path, name):
    strategies = {
        "ddp": lambda: DDPStrategy(process_group_backend="nccl"),
        "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
    }
    ours = histories(tmp_path, strategies[name]())
    alone = histories(tmp_path, "auto")
    for history, expected in zip(ours, alone, strict=True):
        for entry, reference in zip(history, expected, strict=True):
            for key in ("density", "probe_loss", "one_one_norm_per_param", "lambda_max"):
                if key in reference:
                    assert entry[key] == pytest.approx(reference[key], rel=3e-3), key


def test_a_probe_that_runs_out_of_memory_takes_its_batch_in_parts(tmp_path):
    class Large(Regression):
        def __init__(self):
            super().__init__(width=2048)

        def train_dataloader(self):
            x = torch.randn(4 * 65_536, 4, generator=torch.Generator().manual_seed(5))
            data = TensorDataset(x, x.sum(1, keepdim=True).sin())
            return DataLoader(data, batch_size=65_536)

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(6 * 2**30 / total)  # 0.5 GiB an activation
    try:
        with pytest.warns(UserWarning, match="ran out of memory, so from now on"):
            _, smoothness = histories(tmp_path, "auto", Large())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [entry["step"] for entry in smoothness] == [1, 3]


def test_a_probe_takes_what_was_predicted_and_less_where_vectors_are_offloaded():
    torch.manual_seed(0)
    width = 8192  # two square maps: 0.5 GiB a vector, beside which buffers hardly count
    maps = nn.Linear(width, width), nn.Linear(width, width)
    module = nn.Sequential(maps[0], nn.Tanh(), maps[1]).cuda()
    batch = torch.randn(64, width, device="cuda")
    reports, peaks = [], []
    for place in (None, "cpu"):
        options = {
            "loss": lambda m, x: m(x).square().mean(), "num_probes": 4, "offload": place
        }  # fmt: skip
        memory = probe_memory(module, [batch], num_partitions=2, **options)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        partitions = ("coordinate", "global")
        reports.append(measure_geometry(module, [batch], partitions=partitions, **options))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert peaks[-1] == pytest.approx(memory.peak, rel=0.1), str(memory)
    assert peaks[1] < peaks[0] - 4 * memory.vector
    plain, offloaded = reports
    assert offloaded.one_one_norm == pytest.approx(plain.one_one_norm, rel=1e-5)
    assert offloaded.lambda_max == pytest.approx(plain.lambda_max, rel=1e-5)
