"""StepMonitor under every strategy: no bit of training changed, the numbers of one process."""

import sys
import warnings
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from support.ranks import Heard, environment, in_two_processes
from torch import nn
from torch.distributed.fsdp import fully_shard, fully_sharded_data_parallel
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_linf.callbacks import StepMonitor

pytestmark = [
    pytest.mark.slow,  # each test forks two processes
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*FSDP with `bf16-true` enables computation:UserWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available.* Disabling autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*has both parameters with requires_grad=True and False"),
    pytest.mark.filterwarnings("ignore:.*thus have FSDP.s sharding initialization run on CPU"),
]
INIT_DEVICE_HANDLE = fully_sharded_data_parallel._init_device_handle
NUMBERS = ("step_change", "step_curvature", "lowest_multiple", "critical_multiple")


class OnCPU(FSDPStrategy):
    """Torch's older FSDP, which Lightning wants on a GPU; it lets subclasses pass.

    Torch itself runs it on the CPU if that is asked for, which Lightning does not.
    """

    def setup_environment(self):
        def on_cpu(state, module, ignored, device_id):
            return INIT_DEVICE_HANDLE(state, module, ignored, torch.device("cpu"))

        fully_sharded_data_parallel._init_device_handle = on_cpu
        super().setup_environment()

    def teardown(self):
        fully_sharded_data_parallel._init_device_handle = INIT_DEVICE_HANDLE
        super().teardown()


class Regression(lightning.LightningModule):
    """Odd sizes, dropout, a frozen parameter, and statistics that a forward pass changes."""

    def __init__(self, dropout=0.0, has_frozen=True):
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh())
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(7, 3), nn.Linear(3, 1))
        self.last[2].bias.requires_grad_(not has_frozen)
        self.register_buffer("num_calls", torch.zeros(()))

    def configure_model(self):
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            if strategy.device_mesh["tensor_parallel"].size() > 1:
                by_columns = {"0": ColwiseParallel(output_layouts=Replicate())}
                parallelize_module(self.first, self.device_mesh["tensor_parallel"], by_columns)
            if strategy.device_mesh["data_parallel"].size() > 1:
                for part in (self.first, self.last):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.num_calls += 1
        loss = (self.last(self.first(x)).float() - y.float()).square().mean()
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(64, 4, generator=generator)
        strategy = self.trainer.strategy
        shares = getattr(strategy, "distributed_sampler_kwargs", {"num_replicas": 1})[
            "num_replicas"
        ]
        data = TensorDataset(x, x.sum(1, keepdim=True).sin())
        sampler = DistributedSampler(data, shares, self.trainer.global_rank % shares, shuffle=False)
        return DataLoader(data, batch_size=8 // shares, sampler=sampler)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05, 0.5)


STRATEGIES = {
    "auto": lambda: "auto",
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "tensor": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
    "fsdp": lambda: OnCPU(process_group_backend="gloo", auto_wrap_policy={nn.Sequential}),
    "fsdp of flat parameters": lambda: OnCPU(
        process_group_backend="gloo", auto_wrap_policy={nn.Sequential}, use_orig_params=False
    ),
}


def whole(module):
    return {
        name: (p.full_tensor() if hasattr(p, "placements") else p).detach().clone()
        for name, p in [*module.named_parameters(), *module.named_buffers()]
    }


def fit(tmp_path, monitors, name, module, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1 if name == "auto" else 2,
        strategy=STRATEGIES[name](),
        callbacks=monitors,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        **{"max_steps": 6, **options},
    )
    trainer.fit(module)
    return whole(module), [monitor.history for monitor in monitors]


def monitor(**options):
    return StepMonitor(2, **{"on_error": "raise", "max_overhead": None, **options})


CASES = [(name, "32-true") for name in STRATEGIES if name != "auto"]
CASES += [("fsdp", "bf16-mixed"), ("fsdp2", "bf16-mixed"), ("fsdp2", "bf16-true")]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_no_bit_is_changed_and_the_numbers_are_those_of_one_process(
    tmp_path, name, precision, monkeypatch
):
    has_frozen = not name.startswith("fsdp ")  # a flat parameter is trained as a whole
    options = {"precision": precision}

    def run(name, monitors, dropout=0.0):
        return fit(tmp_path, monitors, name, Regression(dropout, has_frozen), **options)

    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        ours, (history,) = run(name, [monitor()])
        without, _ = run(name, [])
        again, _ = run(name, [monitor(mode="train")], 0.3)
        dropped, _ = run(name, [], 0.3)
        same = [
            torch.equal(ours[k], without[k]) and torch.equal(again[k], dropped[k]) for k in ours
        ]
        return history, all(same)

    results = in_two_processes(on_rank, tmp_path)
    _, (alone,) = run("auto", [monitor()])
    for result in results:
        if isinstance(result, Exception):
            raise result
        history, is_same = result
        assert is_same
        assert [entry["step"] for entry in history] == [1, 3, 5]
        assert [entry["step_forwards"] for entry in history] == [7, 7, 7]
        if precision == "32-true":  # in bfloat16 the training itself is another on two ranks
            for entry, expected in zip(history, alone, strict=True):
                for number in NUMBERS:
                    assert entry[number] == pytest.approx(expected[number], rel=1e-3), number


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_rank_that_fails_is_an_error_of_all_and_changes_no_bit(tmp_path, name, monkeypatch):
    class Faulty(Regression):
        """Its second pass of the first measurement fails on rank 1, after the sharded parts."""

        num_passes = 0  # of the class: what the module counts is put back

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if not torch.is_grad_enabled():
                Faulty.num_passes += 1
                if Faulty.num_passes == 2 and self.trainer.global_rank == 1:
                    raise RuntimeError("no loss here")
            return loss

    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        with warnings.catch_warnings(record=True) as caught, Heard() as heard:
            warnings.simplefilter("always")
            ours, (history,) = fit(tmp_path, [monitor(on_error="warn")], name, Faulty())
        without, _ = fit(tmp_path, [], name, Regression())
        said = [*heard, *(str(each.message) for each in caught)]
        return (
            [entry["step"] for entry in history],
            all(torch.equal(ours[key], without[key]) for key in ours),
            said,
        )

    first, second = in_two_processes(on_rank, tmp_path)
    assert first[:2] == second[:2] == ([3, 5], True)
    assert any("another rank failed" in message for message in first[2])
    assert any("failed on rank 1. RuntimeError: no loss here" in said for said in second[2])


def test_batches_that_ranks_share_count_once_in_errors(tmp_path, monkeypatch):
    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        ours = monitor(num_batches=2)
        fit(tmp_path, [ours], "tensor", Regression())
        return ours.last_report.change

    results = in_two_processes(on_rank, tmp_path)
    alone = monitor(num_batches=2)
    fit(tmp_path, [alone], "auto", Regression())
    for change in results:
        assert change.value == pytest.approx(alone.last_report.change.value, rel=1e-3)
        assert change.error == pytest.approx(alone.last_report.change.error, rel=1e-3)


def test_a_rank_without_a_loss_is_left_out_of_the_mean(tmp_path, monkeypatch):
    """As in a pipeline, whose last rank alone has one."""

    class Pipeline(Regression):
        def probe_loss(self, batch):
            loss = self.training_step(batch, 0)
            return loss if self.trainer.global_rank == 1 else torch.full((), torch.nan)

        def probe_weight(self, batch):
            return float(self.trainer.global_rank == 1)

    def on_rank(rank):
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        ours = monitor()
        fit(tmp_path, [ours], "ddp", Pipeline())
        return ours.last_report.losses

    first, second = in_two_processes(on_rank, tmp_path)
    assert first == second
    assert all(loss > 0 for loss in first.values())


def test_stage_3_of_deepspeed_is_refused():
    trainer = SimpleNamespace(strategy=DeepSpeedStrategy.__new__(DeepSpeedStrategy))
    trainer.strategy.config = {"zero_optimization": {"stage": 3}}
    with pytest.raises(
        MisconfigurationException, match="expected DeepSpeed's stage 1 or 2, got st"
    ):
        StepMonitor().check_strategy(trainer)
    trainer.strategy.config = {"zero_optimization": {"stage": 2}}
    StepMonitor().check_strategy(trainer)


class ZeroOnCPU(DeepSpeedStrategy):
    """Lightning wants DeepSpeed on a GPU; DeepSpeed itself runs on the CPU."""

    @property
    def root_device(self):
        return torch.device("cpu", 0)

    def setup_environment(self):
        deepspeed = pytest.importorskip("deepspeed")
        # Another way to add up on one machine, which would be compiled first.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


@pytest.mark.parametrize(("stage", "precision"), [(1, "32-true"), (2, "bf16-true")])
def test_under_deepspeed_too(tmp_path, stage, precision, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(STRATEGIES, "zero", lambda: ZeroOnCPU(stage=stage))

    def run(name, monitors):
        module = Regression(has_frozen=False)
        return fit(tmp_path, monitors, name, module, precision=precision)

    def on_rank(rank):
        warnings.simplefilter("ignore")  # DeepSpeed's own
        for variable, value in environment(rank).items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        ours, (history,) = run("zero", [monitor()])
        without, _ = run("zero", [])
        return history, all(torch.equal(ours[key], without[key]) for key in ours)

    results = in_two_processes(on_rank, tmp_path)
    _, (alone,) = run("auto", [monitor()])
    for result in results:
        if isinstance(result, Exception):
            raise result
        history, is_same = result
        assert is_same
        assert [entry["step"] for entry in history] == [1, 3, 5]
        if precision == "32-true":
            for entry, expected in zip(history, alone, strict=True):
                for number in NUMBERS:
                    assert entry[number] == pytest.approx(expected[number], rel=1e-3), number
