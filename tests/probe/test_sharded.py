"""Parameters sharded by ``fully_shard`` over two ranks give the numbers of whole ones."""

import warnings

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from support import networks
from support.ranks import Heard, environment, in_two_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_linf import Rotation
from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.functional.noise import noise_compute
from lightning_linf.functional.noise_sums import noise_init, noise_update
from lightning_linf.optim import BlockwiseAdam, Reparameterized
from lightning_linf.probe import Landscape, ProbeError, functional_module
from lightning_linf.probe.edge import measure_edge_of_landscape
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.noise import noise_of_batches
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.probe.spectral import split_matrices

pytestmark = [
    pytest.mark.slow,  # each test forks two processes
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]


def sum_over_ranks(tensor):
    dist.all_reduce(tensor)
    return tensor


def shard(module, **options):
    mesh = init_device_mesh("cpu", (2,))
    for part in module:
        if list(part.parameters()):
            fully_shard(part, mesh=mesh, **options)
    return fully_shard(module, mesh=mesh, **options)


def whole(tensor):
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "placements") else tensor).clone()


def relative(ours, exact):
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "policy"])
def test_sums_and_products_are_those_of_the_joined_batch(tmp_path, precision):
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(precision, torch.float32)
    module, batch, loss = networks.mlp()
    module, (x, y) = module.to(dtype), (t.to(dtype) for t in batch)
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]  # of different sizes
    policy = MixedPrecisionPolicy(torch.bfloat16) if precision == "policy" else None
    policies = {"mp_policy": policy} if policy else {}

    def measure(batches, **options):
        with Landscape(module, batches, loss=loss, **options) as landscape:
            d, dtype = landscape.parameters.num_params, landscape.parameters.dtype
            generator = torch.Generator().manual_seed(1)
            vectors = torch.randn(3, d, generator=generator, dtype=dtype)
            return {
                "gradient": landscape.gradient(),
                "gradient away": landscape.gradient(0.01 * vectors[0]),
                "products": landscape.hvp(vectors),
                "losses": torch.tensor([landscape.loss(), landscape.loss(0.01 * vectors[0])]),
            }

    def noise(batches, **options):
        with Landscape(module, batches, loss=loss, **options) as landscape:
            sums = noise_of_batches(landscape)
            return sums.squares.sum(0) * sums.scale**2

    def on_rank(rank):
        shard(module, **policies)
        before = [whole(p) for p in module.parameters()]
        for p in module.parameters():
            p.grad = torch.full_like(p, 7.0)
        options = {"reduce": sum_over_ranks, "whole_parameters": True}
        ours = measure([parts[rank]], **options)
        rotated = measure([parts[rank]], reparameterization=Rotation(seed=1), **options)
        ours["turned"] = rotated["products"]
        ours["noise"] = noise([parts[rank]], **options)
        had_grads = all(bool((whole(p.grad) == 7.0).all()) for p in module.parameters())
        module(x).sum().backward()  # its hooks are back
        is_sharded = all(hasattr(p, "placements") for p in module.parameters())
        after = [whole(p) for p in module.parameters()]
        return ours, is_sharded and had_grads and all(map(torch.equal, before, after))

    exact = measure([(x, y)])
    exact["noise"] = noise(parts)
    exact["turned"] = measure([(x, y)], reparameterization=Rotation(seed=1))["products"]
    tolerance = 1e-12 if precision == "float64" else 1e-5
    for ours, is_unchanged in in_two_processes(on_rank, tmp_path):
        assert is_unchanged
        for name, value in ours.items():
            assert relative(value, exact[name]) < tolerance, name


def test_every_number_of_a_report_is_that_of_the_joined_batch(tmp_path):
    module, (x, y), loss = networks.mlp()
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    partitions = choose_partitions(module, ["row", "tensor"])

    def measure(batches, **options):
        matrices = split_matrices(module)
        with Landscape(module, batches, loss=loss, **options) as landscape:
            step = torch.full((landscape.parameters.num_local,), 1e-3, dtype=torch.float64)
            return measure_landscape(
                landscape, partitions, matrices=matrices, num_probes=8, last_step=step
            ).to_dict()

    def on_rank(rank):
        shard(module)
        return measure([parts[rank]], reduce=sum_over_ranks)

    results = in_two_processes(on_rank, tmp_path)
    expected = measure([(x, y)])
    names = ("loss", "density", "one_one_norm", "lambda_max", "curvature", "r_squared", "secant")
    for result in results:
        assert result["num_hvps"] == expected["num_hvps"]
        for name in names:
            assert result[name] == pytest.approx(expected[name], rel=1e-7), name
        assert result["spectral"] == pytest.approx(expected["spectral"], rel=1e-7)
        for name, ends in expected["smoothness"].items():
            assert result["smoothness"][name] == pytest.approx(ends, rel=1e-7), name


@pytest.mark.parametrize("kind", ["Adam", "BlockwiseAdam", "rotated Adam"])
def test_the_edge_of_a_sharded_optimizer_is_that_of_a_whole_one(tmp_path, kind):
    module, batch, loss = networks.mlp()

    def make(parameters):
        if kind == "BlockwiseAdam":
            return BlockwiseAdam(parameters, lr=0.01)
        if kind == "Adam":
            return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1)
        return Reparameterized(parameters, lambda p: torch.optim.Adam(p, lr=0.01), Rotation(seed=0))

    def measure(**options):
        optimizer = make(list(module.parameters()))
        for _ in range(3):
            optimizer.zero_grad()
            loss(module, batch).backward()
            optimizer.step()
        with Landscape(module, [batch], loss=loss, **options) as landscape:
            step = torch.full((landscape.parameters.num_local,), 1e-3, dtype=torch.float64)
            report = measure_edge_of_landscape(landscape, [optimizer], last_step=step)
        return report.edge, report.step.gain, report.per_tensor["0.weight"].gain

    def on_rank(rank):
        shard(module)
        return measure(reduce=sum_over_ranks)

    results = in_two_processes(on_rank, tmp_path)
    expected = measure()
    for result in results:
        assert result == pytest.approx(expected, rel=1e-7)


class Regression(lightning.LightningModule):
    """Odd sizes, so that shards differ; a frozen parameter, and one that the loss never reaches."""

    num_shares = None  # of the data: all ranks

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 1))
        self.net[1].bias.requires_grad_(False)
        self.unused = nn.Linear(3, 1)

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.unused, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(64, 4, generator=generator)
        data = TensorDataset(x, x.sum(1, keepdim=True).sin())
        shares = self.num_shares or self.trainer.world_size
        sampler = DistributedSampler(data, shares, self.trainer.global_rank % shares, shuffle=False)
        return DataLoader(data, batch_size=8 // shares, sampler=sampler)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05)


def fit(tmp_path, callbacks, strategy, **options):
    world_size = 1 if strategy == "auto" else 2
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        **{"max_steps": 6, **options},
    )
    module = Regression()
    trainer.fit(module)
    weights = [whole(p) for p in module.parameters()]
    return weights, [m.history for m in callbacks]


def monitors():
    options = {"on_error": "raise", "max_overhead": None}
    return [
        GradientHeterogeneityMonitor(2, on_error="raise"),
        LinfSmoothnessMonitor(2, num_probes=8, **options),
        EdgeMonitor(2, **options),
    ]


EXACT = ("density", "gini", "zero_fraction", "num_nonfinite", "probe_loss")
CLOSE = ("one_one_norm_per_param", "lambda_max", "secant/coordinate", "secant/global", "edge")


def assert_same_numbers(ours, alone):
    for history, expected in zip(ours, alone, strict=True):
        assert [entry["step"] for entry in history] == [entry["step"] for entry in expected]
        for entry, reference in zip(history, expected, strict=True):
            assert entry["tensor_names"] == reference["tensor_names"]
            for name in (name for name in (*EXACT, *CLOSE) if name in reference):
                tolerance = 1e-4 if name in CLOSE else 1e-5  # training in float32 drifts apart
                assert entry[name] == pytest.approx(reference[name], rel=tolerance), name


def make_strategy(name):
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_monitors_change_no_bit_and_tell_the_numbers_of_one_process(
    tmp_path, name, precision, monkeypatch
):
    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        ours, histories = fit(tmp_path, monitors(), make_strategy(name), precision=precision)
        without, _ = fit(tmp_path, [], make_strategy(name), precision=precision)
        return histories, all(map(torch.equal, ours, without))

    results = in_two_processes(on_rank, tmp_path)
    _, alone = fit(tmp_path, monitors(), "auto", precision=precision)
    for histories, is_same in results:
        assert is_same
        assert [len(history) for history in histories] == [3, 3, 3]
        if precision == "32-true":  # in bfloat16 the training itself is another on two ranks
            assert_same_numbers(histories, alone)


def noise_of_first_step(per_microbatch):
    """Noise at the initial weights; ``per_microbatch`` lists the samples of each microbatch."""
    module = Regression()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, 4, generator=generator)
    y = x.sum(1, keepdim=True).sin()
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = []
    for samples in per_microbatch:
        loss = (module.net(x[samples]) - y[samples]).square().mean()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    sums = noise_init(len(gradients[0]), gradients[0])
    for gradient, samples in zip(gradients, per_microbatch, strict=True):
        noise_update(sums, gradient, len(samples))
    ends = {p.name: p for p in choose_partitions(module, [], parameters)}
    return noise_compute(sums, [p.numel() for p in parameters], ends)


@pytest.mark.parametrize(
    ("name", "accumulate"), [("ddp", 1), ("ddp", 2), ("fsdp2", 2), ("fsdp2", 4)]
)
def test_noise_is_that_of_the_microbatches_of_all_ranks(tmp_path, name, accumulate, monkeypatch):
    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        monitor = GradientNoiseMonitor(1, on_error="raise")
        options = {"accumulate_grad_batches": accumulate, "max_steps": 2}
        with_monitor, (history,) = fit(tmp_path, [monitor], make_strategy(name), **options)
        without, _ = fit(tmp_path, [], make_strategy(name), **options)
        return history, all(map(torch.equal, with_monitor, without))

    ranks = [[torch.arange(8 * k + r, 8 * (k + 1), 2) for k in range(accumulate)] for r in range(2)]
    if name == "ddp":
        expected = noise_of_first_step([samples for own in ranks for samples in own])
    else:
        expected = noise_of_first_step([torch.cat(both) for both in zip(*ranks, strict=True)])
    for history, is_same in in_two_processes(on_rank, tmp_path):
        assert is_same
        assert [entry["step"] for entry in history] == [0, 1]
        entry, d = history[0], sum(p.numel() for p in Regression().parameters()) - 7
        assert entry["noise_trace"] == pytest.approx(float(expected.trace), rel=1e-5)
        assert entry["noise_scale"] == pytest.approx(float(expected.noise_scale), rel=1e-5)
        ours = entry["per_tensor"]["trace_share"]
        torch.testing.assert_close(ours, (expected.tensor_trace / expected.trace).float())
        error = entry["noise_trace_relative_error"]
        for end in ("coordinate", "global"):
            exact = float(expected.block_noise[end]) / d
            if name == "ddp":  # contrasts fall into other halves
                assert entry[f"noise/{end}"] == pytest.approx(exact, rel=0.3)
            else:
                assert entry[f"noise/{end}"] == pytest.approx(exact, rel=1e-5)
        if (name, accumulate) == ("fsdp2", 4):
            assert error == pytest.approx(float(expected.trace_relative_error), rel=1e-5)
        elif name == "ddp":
            assert error > 0


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_noise_that_fails_on_one_rank_is_given_up_on_both(tmp_path, name, monkeypatch):
    class Uncountable(Regression):
        def probe_weight(self, batch):
            if dist.get_rank() == 1 and self.global_step == 1:
                raise RuntimeError("no weight")
            return len(batch[0])

    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        monitor = GradientNoiseMonitor(1)
        options = {"accumulate_grad_batches": 2, "max_steps": 4}
        with warnings.catch_warnings(record=True) as caught, Heard() as heard:
            warnings.simplefilter("always")
            monkeypatch.setitem(globals(), "Regression", Uncountable)
            ours, (history,) = fit(tmp_path, [monitor], make_strategy(name), **options)
        monkeypatch.undo()
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        without, _ = fit(tmp_path, [], make_strategy(name), **options)
        said = [*heard, *(str(w.message) for w in caught if "ailed" in str(w.message))]
        return [e["step"] for e in history], all(map(torch.equal, ours, without)), said

    first, second = in_two_processes(on_rank, tmp_path)
    assert first[:2] == second[:2] == ([0, 2, 3], True)
    assert "another rank failed" in first[2][0]
    assert any("failed on rank 1. RuntimeError: no weight" in message for message in second[2])


class Parallel(Regression):
    """Its first layer is split by columns over tensor-parallel ranks, and all are sharded."""

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            by_columns = {"0": ColwiseParallel(output_layouts=Replicate())}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], by_columns)
            super().configure_model()


def test_under_the_defaults_of_model_parallel_strategy_numbers_are_those_of_one_process(
    tmp_path, monkeypatch
):
    def run(strategy, callbacks):
        monkeypatch.setitem(globals(), "Regression", Parallel)
        return fit(tmp_path, callbacks, strategy, max_steps=4, accumulate_grad_batches=2)

    def callbacks():
        return [GradientNoiseMonitor(2, on_error="raise"), *monitors()]

    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(Parallel, "num_shares", 1)
        # tensor parallelism over all devices of a node
        ours, histories = run(ModelParallelStrategy(), callbacks())
        without, _ = run(ModelParallelStrategy(), [])
        return histories, all(map(torch.equal, ours, without))

    results = in_two_processes(on_rank, tmp_path)
    _, alone = run("auto", callbacks())
    for histories, is_same in results:
        assert is_same
        assert_same_numbers(histories, alone)


def test_memory_that_runs_out_while_gathering_is_told_to_both_ranks(tmp_path, monkeypatch):
    module, batch, loss = networks.mlp()

    def on_rank(rank):
        shard(module)
        real, calls = functional_module.gather_sharded, []

        def gather(places):
            whole = real(places)
            calls.append(None)
            if rank == 1 and len(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return whole

        monkeypatch.setattr(functional_module, "gather_sharded", gather)
        kinds = []
        for _ in range(2):
            try:
                with Landscape(module, [batch], loss=loss, reduce=sum_over_ranks) as landscape:
                    kinds.append(landscape.loss())
            except ProbeError as error:
                kinds.append(type(error).__name__)
        return kinds

    first, second = in_two_processes(on_rank, tmp_path)
    assert first[0] == second[0] == "ProbeMemoryError"
    assert first[1] == second[1] > 0


def test_predicted_memory_has_the_shards_or_the_gathered_parameters(tmp_path):
    module, batch, loss = networks.mlp()

    def on_rank(rank):
        memories = []
        for prepare, whole_parameters in ((None, False), (shard, True), (None, False)):
            if prepare:
                prepare(module)
            options = {"reduce": sum_over_ranks, "whole_parameters": whole_parameters}
            with Landscape(module, [batch], loss=loss, **options) as landscape:
                memories.append(landscape.memory(num_probes=4, num_partitions=2))
        return [(memory.graph, memory.vector) for memory in memories]

    first, second = in_two_processes(on_rank, tmp_path)
    assert first == second
    alone, gathered, shared = first
    assert gathered == (alone[0] + alone[1], alone[1])
    assert shared[1] == alone[1] / 2  # of this network every size is even
    # stretches and copies of them, half of each, and the last parameter that was gathered
    assert shared[0] < alone[0] + module[0].weight.nbytes
