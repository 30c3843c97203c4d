"""A run goes on where it stopped on another number of ranks: optimizer, rotation and histories."""

import os
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from support.ranks import assert_close, environment, in_processes, weights
from support.sharded_net import data, net
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_linf import Geometry, GeometryMixin
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.record import Reader

pytestmark = pytest.mark.slow  # each test forks twelve processes

NUM_STEPS, STOPPED_AT = 4, 2
GEOMETRY = Geometry("blockwise_adam", "tensor", rotation="global", options={"eps": 1e-3})
SAME = ("density", "gini", "one_one_norm_per_param", "lambda_max", "probe_loss")


class Training(lightning.LightningModule):
    """Steps on eight samples, whatever the number of ranks, in two microbatches."""

    def __init__(self):
        super().__init__()
        self.net = net()
        del self.net.unused  # no checkpoint has a state of it, and torch asks for one

    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net.attention, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def train_dataloader(self):
        num_ranks, rank = self.trainer.world_size, self.trainer.global_rank
        x, y = data()
        dataset = TensorDataset(x.repeat(8, 1), y.repeat(8, 1))
        sampler = DistributedSampler(dataset, num_ranks, rank, shuffle=False)
        return DataLoader(dataset, batch_size=4 // num_ranks, sampler=sampler)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=0.01, weight_decay=0.1)


def make_strategy(name, num_ranks):
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    return ModelParallelStrategy(data_parallel_size=num_ranks, tensor_parallel_size=1)


def train(rank, num_ranks, strategy, folder, num_steps, ckpt_path=None):
    """Give weights, and histories by monitor; the run is saved in its folder."""
    os.environ.update(environment(rank, num_ranks))
    options = {"on_error": "raise"}
    monitors = [
        GradientHeterogeneityMonitor(1, **options),
        GradientNoiseMonitor(2, **options),
        LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None, **options),
    ]
    module = GeometryMixin.wrap(Training(), GEOMETRY)
    trainer = lightning.Trainer(
        max_steps=num_steps, max_epochs=-1, accelerator="cpu", devices=num_ranks,
        strategy=make_strategy(strategy, num_ranks), callbacks=monitors,
        accumulate_grad_batches=2, logger=CSVLogger(folder, "", ""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, ckpt_path=ckpt_path)
        trainer.save_checkpoint(folder / f"{num_steps}.ckpt")
    return weights(module.net), {type(m).__name__: m.history for m in monitors}


def in_ranks(num_ranks, folder, *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    results = in_processes(lambda rank: train(rank, num_ranks, *arguments), folder, num_ranks)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_other_ranks_as_in_one_process(tmp_path, strategy):
    whole = tmp_path / "whole"
    ((expected, histories),) = in_ranks(1, whole, strategy, whole, NUM_STEPS)
    for before, after in ((2, 1), (1, 2), (4, 2)):
        folder = tmp_path / f"{before} to {after}"
        in_ranks(before, folder, strategy, folder, STOPPED_AT)
        last = folder / f"{STOPPED_AT}.ckpt"
        assert last.is_dir() == (strategy == "fsdp2")
        results = in_ranks(after, folder, strategy, folder, NUM_STEPS, last)
        for ours, of_monitors in results:
            assert_close(ours, expected, rtol=1e-8, atol=1e-8)
            for monitor, history in of_monitors.items():
                steps = [entry["step"] for entry in histories[monitor]]
                assert [entry["step"] for entry in history] == steps, monitor
                for entry, of_one in zip(history, histories[monitor], strict=True):
                    for name in set(SAME) & set(of_one):
                        assert entry[name] == pytest.approx(of_one[name], rel=1e-5), name
        with open(folder / "geometry.jsonl", "rb") as file:
            recorded = [(record.tag, record.step) for _, record in Reader(file)]
        assert len(recorded) == len(set(recorded)) == sum(map(len, histories.values()))
