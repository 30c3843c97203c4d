"""Geometries are chosen, swapped and resumed under ModelParallelStrategy as on one device."""

import os

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from support.ranks import assert_close, environment, in_two_processes, weights
from support.sharded_net import data, net
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_linf import Geometry, GeometryMixin
from lightning_linf.callbacks import SwapOptimizer

pytestmark = pytest.mark.slow  # each test forks two processes

NUM_STEPS = 9
COMPARED = ["clipped", "row", "rotated", "swapped", "both"]


class Training(lightning.LightningModule):
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
        dataset = TensorDataset(*data())  # one batch: a resumed run starts with the first again
        sampler = DistributedSampler(dataset, num_ranks, rank, shuffle=False)
        return DataLoader(dataset, batch_size=8 // num_ranks, sampler=sampler)

    def configure_optimizers(self):
        optimizer = AdamW(self.net.parameters(), lr=0.01, weight_decay=0.1)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


ROTATED = Geometry("adam", rotation="global")
BY_HEAD = Geometry("blockwise_adam", partition="head")
RUNS = {  # geometry of the module, and later ones by step
    "clipped": (None, {}),
    "row": (Geometry("blockwise_adam", partition="row"), {}),
    "rotated": (Geometry(rotation="global"), {}),
    "swapped": (None, {2: BY_HEAD, 4: ROTATED, 6: Geometry("signum", lr=0.003)}),
    "other swap": (None, {2: Geometry("signum")}),
    "both": (
        Geometry("adasgd"),
        {
            2: Geometry("adamw"),
            4: Geometry("blockwise_adam", partition="coordinate", rotation="tensor"),
        },
    ),
}
if hasattr(torch.optim, "Muon"):  # torch 2.9
    RUNS["muon"] = (Geometry("muon"), {4: Geometry("signum", lr=0.003), 6: Geometry("muon")})
    COMPARED.append("muon")


def on_two_devices(rank, distributed_checkpoint=True):
    """Give the Trainer's options for one of two processes."""
    os.environ.update(environment(rank))
    return {
        "devices": 2,
        "strategy": ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=distributed_checkpoint,
        ),
    }


def fit(name, num_steps, checkpoint=None, devices=1, strategy="auto"):
    geometry, swaps = RUNS[name]
    module = Training()
    if geometry is not None:
        module = GeometryMixin.wrap(module, geometry)
    trainer = lightning.Trainer(
        max_steps=num_steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        callbacks=[SwapOptimizer(step, each) for step, each in swaps.items()],
        gradient_clip_val=0.05 if name == "clipped" else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    return trainer, weights(module.net)


# Lightning's own, in its checkpoints and data loading.
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@quiet
def test_runs_with_swaps_equal_those_of_one_process_and_go_on_from_checkpoints(
    tmp_path, monkeypatch
):
    # Muon's iteration, which else rounds to bfloat16: in another order on shards.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)

    def on_rank(rank):
        found = {}
        for name in COMPARED:
            _, in_one_go = fit(name, NUM_STEPS, **on_two_devices(rank))
            found[name] = [in_one_go]
            for distributed, at_step in ((True, 3), (True, 8), (False, 5)):
                trainer, _ = fit(name, at_step, **on_two_devices(rank, distributed))
                path = tmp_path / f"{name}-{distributed}-{at_step}.ckpt"
                trainer.save_checkpoint(path)
                assert path.is_dir() == distributed
                options = on_two_devices(rank, distributed)
                found[name].append(fit(name, NUM_STEPS, path, **options)[1])
        return found

    results = in_two_processes(on_rank, tmp_path)
    for name in COMPARED:
        _, expected = fit(name, NUM_STEPS)
        for result in results:
            in_one_go, *resumed = result[name]
            assert_close(in_one_go, expected)
            assert len(resumed) == 3
            for each in resumed:
                assert_close(each, in_one_go, rtol=0, atol=0)


@quiet
def test_a_checkpoint_of_another_geometry_is_refused(tmp_path):
    path = tmp_path / "swapped.ckpt"

    def on_rank(rank):
        trainer, _ = fit("swapped", 3, **on_two_devices(rank))
        trainer.save_checkpoint(path)
        messages = []
        for name in ("rotated", "other swap"):
            with pytest.raises(MisconfigurationException) as caught:
                fit(name, NUM_STEPS, path, **on_two_devices(rank))
            messages.append(str(caught.value))
        return messages

    for of_module, of_callback in in_two_processes(on_rank, tmp_path):
        assert "GeometryMixin: expected a checkpoint saved under the same optimizer" in of_module
        assert "SwapOptimizer: expected a checkpoint after a swap to Signum" in of_callback


@quiet
def test_a_second_fit_of_one_trainer_goes_on_as_the_first(tmp_path):
    path = tmp_path / "both.ckpt"

    def on_rank(rank):
        trainer, _ = fit("both", 3, **on_two_devices(rank))  # without a checkpoint
        trainer.save_checkpoint(path)
        trainer.fit_loop.epoch_loop.max_steps = NUM_STEPS
        trainer.lightning_module.zero_grad()  # else torch restores no state, of AdamW neither
        trainer.fit(trainer.lightning_module, ckpt_path=path)
        in_one_go = fit("both", NUM_STEPS, **on_two_devices(rank))[1]
        return weights(trainer.lightning_module.net), in_one_go

    for twice, in_one_go in in_two_processes(on_rank, tmp_path):
        assert_close(twice, in_one_go, rtol=0, atol=0)
