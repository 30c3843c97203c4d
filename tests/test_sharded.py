"""Parameters sharded by ``fully_shard`` over two ranks give the numbers of whole ones."""

import lightning
import networks
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from ranks import in_two_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_linf import Rotation
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.functional.noise import noise_compute, noise_init, noise_update
from lightning_linf.functional.shards import whole_tensor
from lightning_linf.probe import Landscape, ProbeError
from lightning_linf.probe.geometry import choose_partitions, measure_landscape, measure_noise
from lightning_linf.probe.sharded import ShardedLandscape

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


def sharded_landscape(module, batches, **options):
    return ShardedLandscape(module, batches, reduce=sum_over_ranks, **options)


def relative(ours, exact):
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_exact_and_products_within_the_stated_error(tmp_path, dtype):
    module, (x, y), loss = networks.mlp()
    module, x = module.to(dtype), x.to(dtype)
    y = y.to(dtype) if y.is_floating_point() else y
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]  # of different sizes

    with Landscape(module, [(x, y)], loss=loss) as landscape:
        d = landscape.parameters.num_params
        gaussian, cauchy = torch.randn(d, dtype=dtype), torch.empty(d, dtype=dtype).cauchy_()
        vectors = torch.stack([gaussian, gaussian.sign(), cauchy, 1e-6 * cauchy])
        offset = 0.01 * gaussian
        exact = {
            "gradient": landscape.gradient(),
            "gradient away": landscape.gradient(offset),
            "products": landscape.hvp(vectors),
            "losses": (landscape.loss(), landscape.loss(offset)),
        }
    turned = Rotation(seed=1)
    with Landscape(module, [(x, y)], loss=loss, reparameterization=turned) as landscape:
        exact["turned"] = landscape.hvp(gaussian)
    with Landscape(module, parts, loss=loss) as landscape:
        exact["noise"] = measure_noise(landscape)

    def on_rank(rank):
        before = [p.detach().clone() for p in module.parameters()]
        shard(module)
        for p in module.parameters():
            p.grad = torch.full_like(p, 7.0)
        batch = [parts[rank]]
        with sharded_landscape(module, batch, loss=loss) as landscape:
            ours = {
                "gradient": landscape.gradient(),
                "gradient away": landscape.gradient(offset),
                "products": landscape.hvp(vectors),
                "losses": (landscape.loss(), landscape.loss(offset)),
                "noise": measure_noise(landscape),
                "stated": landscape.hvp_relative_error,
            }
        with sharded_landscape(module, batch, loss=loss, reparameterization=turned) as landscape:
            ours["turned"] = landscape.hvp(gaussian)
        after = [whole_tensor(p.detach()) for p in module.parameters()]
        grads = [whole_tensor(p.grad) for p in module.parameters()]
        ours["unchanged"] = all(map(torch.equal, before, after))
        ours["grads"] = all(bool((g == 7.0).all()) for g in grads)
        return ours

    exactly, closely = (1e-12, 1e-8) if dtype == torch.float64 else (1e-5, 1e-3)
    for ours in in_two_processes(on_rank, tmp_path):
        assert ours["unchanged"]
        assert ours["grads"]
        for name in ("gradient", "gradient away"):
            assert relative(ours[name], exact[name]) < exactly
        assert ours["losses"] == pytest.approx(exact["losses"], rel=exactly)
        for product, reference in zip(ours["products"], exact["products"], strict=True):
            assert relative(product, reference) < closely
        assert relative(ours["turned"], exact["turned"]) < closely
        error = relative(ours["products"][0], exact["products"][0])
        assert error / 4 < ours["stated"] < closely
        assert ours["noise"].weight == exact["noise"].weight
        assert relative(ours["noise"].mean, exact["noise"].mean) < exactly
        assert relative(ours["noise"].squares.sum(0), exact["noise"].squares.sum(0)) < 100 * exactly


def test_every_number_of_a_report_is_that_of_the_joined_batch(tmp_path):
    module, (x, y), loss = networks.mlp()
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    partitions = choose_partitions(module, ["row", "tensor"])

    def on_rank(rank):
        shard(module)
        with sharded_landscape(module, [parts[rank]], loss=loss) as landscape:
            noise = measure_noise(landscape)
            step = torch.full((landscape.parameters.num_params,), 1e-3, dtype=torch.float64)
            report = measure_landscape(
                landscape, partitions, num_probes=8, noise=noise, last_step=step
            )
        return report.to_dict()

    results = in_two_processes(on_rank, tmp_path)
    with Landscape(module, [(x, y)], loss=loss) as landscape:
        step = torch.full((landscape.parameters.num_params,), 1e-3, dtype=torch.float64)
        expected = measure_landscape(landscape, partitions, num_probes=8, last_step=step).to_dict()
    for result in results:
        assert result["settings"]["hvp_relative_error"] < 1e-7
        for name in ("loss", "density", "r_squared", "dual_norm", "num_params", "num_hvps"):
            assert result[name] == pytest.approx(expected[name], rel=1e-10), name
        for name in ("one_one_norm", "lambda_max", "curvature", "secant"):
            assert result[name] == pytest.approx(expected[name], rel=1e-6), name


def refusals(rank):
    messages = []
    module, batch, loss = networks.mlp()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    cases = [
        (shard(module, mp_policy=policy), [batch], loss),
        (shard(networks.mlp()[0].bfloat16()), [batch], loss),
        (shard(networks.mlp()[0]), [batch] * (rank + 1), loss),
        (shard(networks.mlp()[0]), [batch], lambda m, b: loss(m, b) / (1 - rank)),
    ]
    for sharded, batches, objective in cases:
        before = [whole_tensor(p.detach()) for p in sharded.parameters()]
        try:
            with sharded_landscape(sharded, batches, loss=objective) as landscape:
                landscape.gradient()
        except ProbeError as error:
            messages.append(str(error))
        after = [whole_tensor(p.detach()) for p in sharded.parameters()]
        assert all(map(torch.equal, before, after))
    return messages


def test_what_would_give_other_numbers_is_refused_on_both_ranks(tmp_path):
    for rank, messages in enumerate(in_two_processes(refusals, tmp_path)):
        policy, narrow, number, failing = messages
        assert "got torch.bfloat16 by the MixedPrecisionPolicy" in policy
        assert "expected sharded parameters in float32 or wider" in narrow
        assert f"as many batches on every rank, got {rank + 1} here and 3 on all 2" in number
        assert ("got inf" if rank else "another rank failed") in failing


class Regression(lightning.LightningModule):
    """Odd sizes, so that shards differ; a frozen parameter, and one that the loss never reaches."""

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
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(data, world_size, rank, shuffle=False)
        return DataLoader(data, batch_size=8 // world_size, sampler=sampler)

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
    weights = [whole_tensor(p.detach()).clone() for p in module.parameters()]
    return weights, [m.history for m in callbacks]


def monitors():
    return [
        GradientHeterogeneityMonitor(2, on_error="raise"),
        LinfSmoothnessMonitor(2, num_probes=8, on_error="raise"),
    ]


EXACT = ("density", "gini", "zero_fraction", "num_nonfinite", "probe_loss")
CLOSE = ("one_one_norm_per_param", "lambda_max", "secant/coordinate", "secant/global")


def assert_same_numbers(ours, alone, close):
    for history, expected in zip(ours, alone, strict=True):
        assert [entry["step"] for entry in history] == [entry["step"] for entry in expected]
        for entry, reference in zip(history, expected, strict=True):
            assert entry["tensor_names"] == reference["tensor_names"]
            for name in (name for name in (*EXACT, *CLOSE) if name in reference):
                tolerance = close if name in CLOSE else 1e-5  # training in float32 drifts apart
                assert entry[name] == pytest.approx(reference[name], rel=tolerance), name


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_monitors_change_no_bit_and_tell_the_numbers_of_one_process(tmp_path, name, monkeypatch):
    def strategy():
        if name == "ddp":
            return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)

    def on_rank(rank):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("NODE_RANK", "0")
        with_monitors, histories = fit(tmp_path, monitors(), strategy())
        without, _ = fit(tmp_path, [], strategy())
        return histories, all(map(torch.equal, with_monitors, without))

    results = in_two_processes(on_rank, tmp_path)
    _, alone = fit(tmp_path, monitors(), "auto")
    for histories, is_same in results:
        assert is_same
        assert_same_numbers(histories, alone, close=1e-4 if name == "ddp" else 3e-3)
    if name == "fsdp2":
        assert all(0 < entry["hvp_relative_error"] < 1e-3 for entry in results[0][0][1])


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
    return noise_compute(sums, [p.numel() for p in parameters], {})


@pytest.mark.parametrize(("name", "accumulate"), [("ddp", 1), ("ddp", 2), ("fsdp2", 2)])
def test_noise_is_that_of_the_microbatches_of_all_ranks(tmp_path, name, accumulate, monkeypatch):
    def strategy():
        if name == "ddp":
            return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)

    def on_rank(rank):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("NODE_RANK", "0")
        monitor = GradientNoiseMonitor(1, on_error="raise")
        options = {"accumulate_grad_batches": accumulate, "max_steps": 2}
        with_monitor, (history,) = fit(tmp_path, [monitor], strategy(), **options)
        without, _ = fit(tmp_path, [], strategy(), **options)
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
        # sigma_i >= 0: the l1 mean is at most the l2 mean, which follows from the trace
        root = (float(expected.trace) / d) ** 0.5
        assert 0 < entry["noise/coordinate"] < 1.2 * root
        if name == "fsdp2":  # one contrast: no correction for few of them
            assert entry["noise/global"] == pytest.approx(root, rel=1e-5)


class Gated(nn.Module):
    """Its last layer is reached only by batches whose first target is positive."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 1))
        self.gate = nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 1).requires_grad_(False)


def gated_loss(module, batch):
    x, y = batch
    output = module.body(x) + module.frozen(x)
    output = output + module.gate(x).tanh() if bool(y[0] > 0) else output
    return (output - y).square().mean()


@pytest.mark.parametrize("is_sharded", [False, True])
def test_uneven_batches_and_parameters_without_gradient_on_one_rank(tmp_path, is_sharded):
    module = Gated().double()
    x, y = torch.randn(11, 4).double(), torch.randn(11, 1).double().abs()
    y[8:] = -y[8:]
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]  # 8 samples on one rank, 3 on the other
    vector = torch.randn(sum(p.numel() for p in module.parameters() if p.requires_grad)).double()

    def on_rank(rank):
        make = Landscape
        if is_sharded:
            mesh = init_device_mesh("cpu", (2,))
            # not the gate: ranks gather what they call together, and one does not call it
            for part in (module.body, module.frozen):
                fully_shard(part, mesh=mesh)
            make = ShardedLandscape
        with make(module, [batches[rank]], loss=gated_loss, reduce=sum_over_ranks) as landscape:
            return landscape.loss(), landscape.gradient(), landscape.hvp(vector)

    with Landscape(module, batches, loss=gated_loss) as landscape:
        loss, gradient, product = landscape.loss(), landscape.gradient(), landscape.hvp(vector)
    for ours in in_two_processes(on_rank, tmp_path):
        assert ours[0] == pytest.approx(loss, rel=1e-12)
        assert relative(ours[1], gradient) < 1e-12
        assert relative(ours[2], product) < (1e-8 if is_sharded else 1e-12)
