"""A rank is killed: the others end with an error in time, and all that was written is whole."""

import os
import signal
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from support.bit_identity import assert_same
from support.faulty_training import Regression, at_probes, fit, weights
from support.ranks import environment
from support.ranks_apart import run_apart

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from lightning_linf.errors import RankLostError
from lightning_linf.record import Reader

pytestmark = pytest.mark.slow


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Regression):
    """Killed in the forward pass of one step."""

    def __init__(self, last_step=None):
        super().__init__()
        self.last_step = last_step

    def training_step(self, batch, batch_idx):
        if self.global_step == self.last_step:
            die()
        return super().training_step(batch, batch_idx)


def train(rank, folder, module, ckpt_path=None):
    os.environ.update(environment(rank))
    monitors = [
        GradientHeterogeneityMonitor(1, on_error="warn"),
        LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None),
    ]
    every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(
            module, [*monitors, every], folder, ckpt_path=ckpt_path, devices=2,
            strategy=DDPStrategy(process_group_backend="gloo"), enable_checkpointing=True,
            logger=CSVLogger(folder, "", "", flush_logs_every_n_steps=1),
        )  # fmt: skip
    names = "one_one_norm_per_param", "lambda_max", "secant/global"
    measured = [[e["step"], *(e[name] for name in names)] for e in monitors[1].history]
    return weights(module), measured, [[e["step"], e["density"]] for e in monitors[0].history]


def recorded_steps(folder, monitor):
    with open(folder / "geometry.jsonl", "rb") as file:
        reader = Reader(file)
        steps = [record.step for _, record in reader if record.tag == monitor.record_tag]
        assert reader.notes() == []  # every line is whole
    return steps


@pytest.mark.parametrize("place", ["probe", "training"])
def test_a_killed_rank_ends_the_other_and_a_resumed_run_is_the_uninterrupted_one(tmp_path, place):
    killed = tmp_path / "killed"

    def is_killed(rank):
        if place == "probe":
            module = Regression(at_probes([2], die) if rank == 1 else None)
        else:
            module = Mortal(last_step=5 if rank == 1 else None)
        train(rank, killed, module)

    codes, results = run_apart(is_killed, killed, 2)
    assert codes == [0, -signal.SIGKILL], results
    if place == "probe":
        assert isinstance(results[0], RankLostError)
        assert "LinfSmoothnessMonitor: measure at step 5" in str(results[0])
        assert "Rank 1 is missing" in str(results[0])
    else:
        assert isinstance(results[0], RuntimeError), results[0]
    in_time = range(6 if place == "probe" else 5)
    assert recorded_steps(killed, GradientHeterogeneityMonitor) == list(in_time)
    assert recorded_steps(killed, LinfSmoothnessMonitor) == [1, 3]
    rows = (killed / "metrics.csv").read_text().splitlines()
    assert all(row.count(",") == rows[0].count(",") for row in rows)
    (last,) = killed.glob("*.ckpt")
    assert last.name == "step=3.ckpt"
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    _, ours = run_apart(lambda rank: train(rank, killed, Regression(), last), resumed, 2)
    _, theirs = run_apart(lambda rank: train(rank, whole, Regression()), whole, 2)
    for result, expected in zip(ours, theirs, strict=True):
        assert_same(result, expected)
    assert recorded_steps(killed, LinfSmoothnessMonitor) == [1, 3, 5, 7]
    assert recorded_steps(killed, GradientHeterogeneityMonitor) == list(range(8))
    assert torch.equal(ours[0][0], ours[1][0])
