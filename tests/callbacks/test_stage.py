"""When it is too early for a verdict: before the end of a warm-up, and at the start of the loss."""

import math

import pytest
import torch
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, fit

from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.recorder.stage import TrainingStage

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)


def optimizer(*rates):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def stages(rates, losses=None):
    """The stage after each step, of a training whose loss falls unless given."""
    stage, used, found = TrainingStage(), optimizer(0.0), []
    losses = [1 / (1 + i) for i in range(len(rates))] if losses is None else losses
    for rate, loss in zip(rates, losses, strict=True):
        stage.add_loss({"loss": torch.tensor(loss)})
        used.param_groups[0]["lr"] = rate
        stage.add_step([used])
        found.append(stage.now(None))
    return found


def test_a_rate_that_rises_at_each_step_is_a_warm_up_until_it_stops():
    linear_then_constant = [min(1.0, (i + 1) / 10) for i in range(30)]
    found = stages(linear_then_constant)
    assert found[1:11] == ["warm-up"] * 10  # it is over when one step has not risen
    assert set(found[11:]) == {"training"}
    falling = [min((i + 1) / 10, 1 - i / 40) for i in range(30)]
    assert stages(falling)[10:] == ["training"] * 20


def test_a_rate_that_rises_once_an_epoch_is_a_warm_up_between_the_rises_too():
    rates = [0.1 * (1 + min(i // 5, 4)) for i in range(40)]
    found = stages(rates)
    assert set(found[5:25]) == {"warm-up"}
    assert set(found[26:]) == {"training"}


def test_a_constant_or_falling_rate_is_no_warm_up_and_a_restart_is_over_once_it_falls():
    for rates in ([0.1] * 30, [1 / (1 + i) for i in range(30)]):
        assert "warm-up" not in stages(rates)
    restarts = [1 - (i % 10) / 10 for i in range(30)]
    found = stages(restarts)
    assert [i for i, stage in enumerate(found) if stage == "warm-up"] == [10, 20]


def test_rates_of_another_optimizer_or_another_number_of_groups_are_no_rise():
    stage = TrainingStage()
    for used in (optimizer(0.1), optimizer(0.5)):
        stage.add_step([used])
    used.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 9.0})
    stage.add_step([used])
    assert stage.now(None) == "training"
    used.param_groups[1]["lr"] = 10.0
    stage.add_step([used])
    assert stage.now(None) == "warm-up"


def test_a_loss_that_only_makes_noise_has_not_left_its_start():
    def share(fall):
        """Of 300 trainings of 40 steps, those whose loss is said to have left its start."""
        left = 0
        for seed in range(300):
            noise = torch.randn(40, generator=torch.Generator().manual_seed(seed)).tolist()
            losses = [x - fall * (i >= 20) for i, x in enumerate(noise)]
            left += stages([0.1] * 40, losses)[-1] == "training"
        return left / 300

    assert share(0.0) <= 0.06  # one side of 1.96 or so standard errors, of few losses
    assert share(2.0) >= 0.95


def test_few_losses_are_compared_by_halves_and_nan_is_no_fall():
    assert stages([0.1] * 3, [3.0, 2.0, 1.0])[-1] == "start"
    assert stages([0.1] * 4, [4.0, 4.0, 1.0, 1.0])[-1] == "training"
    assert stages([0.1] * 40, [1.0] * 20 + [math.nan] * 20)[-1] == "start"
    assert stages([0.1] * 40, [2.0] * 20 + [1.0] * 10 + [2.0] * 10)[-1] == "start"  # back again


def test_without_losses_rates_alone_tell():
    stage = TrainingStage()
    for outputs in (None, {}, {"loss": None}, torch.zeros(2)):
        stage.add_loss(outputs)
    assert stage.now(None) == "training"


def test_losses_of_ranks_are_pooled():
    stage = TrainingStage()
    for loss in (2.0, 2.0, 1.9, 1.9):
        stage.add_loss(torch.tensor(loss))
    assert stage.now(None) == "training"
    risen = torch.tensor([2.0, 2.0, 2.0, 8.0, 32.0, 4.0], dtype=torch.float64)
    assert stage.now(lambda sums: sums + risen) == "start"


def test_a_resumed_training_remembers():
    stage, used = TrainingStage(), optimizer(0.0)
    for i in range(30):
        stage.add_loss({"loss": torch.tensor(1 / (1 + i))})
        used.param_groups[0]["lr"] = 0.1 * (i // 10)
        stage.add_step([used])
    resumed = TrainingStage()
    resumed.load_state_dict(stage.state_dict())
    assert resumed.now(None) == stage.now(None) == "warm-up"
    assert resumed.state_dict() == stage.state_dict()
    resumed.add_step([used])
    assert resumed.now(None) == "warm-up"
    used.param_groups[0]["lr"] = 0.1
    resumed.add_step([used])
    assert resumed.now(None) == "training"


class WarmedUp(Quadratic):
    """Eight steps of warm-up; the loss falls from the first step on."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_the_monitor_gives_no_verdict_before_the_end_of_the_warm_up(tmp_path):
    class Kept(LinfSmoothnessMonitor):
        found = ()

        def record(self, *args, report, **kwargs):
            self.found = (*self.found, (report.settings["stage"], report.verdict_status))
            super().record(*args, report=report, **kwargs)

    monitor = Kept(4, num_probes=4, on_error="raise", max_overhead=None)
    fit(WarmedUp(), [monitor], tmp_path, max_steps=20, limit_train_batches=20)
    assert [stage for stage, _ in monitor.found] == ["warm-up", "warm-up", *["training"] * 3]
    assert [status for _, status in monitor.found] == [*["too early"] * 2, *["undecided"] * 3]
    assert "Too early" not in monitor.last_report.verdict
    start = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise")
    fit(Quadratic(), [start], tmp_path)
    assert start.last_report.settings["stage"] == "start"
    assert start.last_report.verdict_status == "too early"
