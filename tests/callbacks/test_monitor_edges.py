"""Trainings that end early, steps without a loss, two monitors of a kind, poisoned states."""

import json
import math

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import WarningCache
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.optimization.automatic import Closure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import Geometry, quantities
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
    SwapOptimizer,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*`training_step` returned `None`:UserWarning",
)
MONITORS = [GradientHeterogeneityMonitor, GradientNoiseMonitor, LinfSmoothnessMonitor]


@pytest.fixture(autouse=True)
def lightning_warns_again(monkeypatch):
    """Lightning says once in a process that a training_step has returned None."""
    monkeypatch.setattr(Closure, "warning_cache", WarningCache())


class Quadratic(lightning.LightningModule):
    """The loss sum(scale * theta^2) / 2, with the Hessian diag(1, 2)."""

    def __init__(self, without_loss=()):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.without_loss = without_loss

    def loss(self):
        return (torch.tensor([1.0, 2.0]) * self.theta.square()).sum() / 2

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.without_loss else self.loss()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, callbacks, tmp_path, **options):
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    trainer = lightning.Trainer(callbacks=callbacks, **{**defaults, **options})
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=1))
    return trainer


def monitors(every_n_steps, on_error="raise"):
    return [
        GradientHeterogeneityMonitor(every_n_steps, on_error=on_error),
        LinfSmoothnessMonitor(every_n_steps, num_probes=4, on_error=on_error, max_overhead=None),
    ]


def steps(monitor):
    return [entry["step"] for entry in monitor.history]


def sayings(seen, name="Monitor"):
    return [str(w.message) for w in seen if name in str(w.message).split(":")[0]]


def test_a_step_without_a_loss_is_passed_over_and_the_next_one_measured(tmp_path):
    callbacks = monitors(2)
    fit(Quadratic(without_loss=(1, 5)), callbacks, tmp_path)
    assert [steps(monitor) for monitor in callbacks] == [[2, 3, 6, 7]] * 2
    assert callbacks[1].history[0]["lambda_max"] == pytest.approx(2.0, rel=1e-3)


def test_microbatches_without_a_loss_are_no_batches_of_the_probe(tmp_path):
    class Weighted(Quadratic):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if loss is None else (1 + batch_idx) * loss

    # Steps of two microbatches: (0, 1), (2, 3), ...: the second of the last two has none.
    monitor = LinfSmoothnessMonitor(
        1, num_probes=4, num_batches=2, on_error="raise", max_overhead=None
    )
    fit(Weighted(without_loss=(3, 4)), [monitor], tmp_path, accumulate_grad_batches=2)
    assert steps(monitor) == [0, 2, 3]
    # of batches 0 and 1, of 2 (kept) and 5, of 6 and 7
    means = [(1 + 2) / 2, (3 + 6) / 2, (7 + 8) / 2]
    seen = [entry["lambda_max"] for entry in monitor.history]
    assert seen == pytest.approx([2.0 * mean for mean in means], rel=1e-3)


def test_a_training_of_steps_without_a_loss_says_so_at_its_end(tmp_path):
    callbacks = monitors(4)
    with pytest.warns(UserWarning, match="nothing was measured") as seen:
        fit(Quadratic(without_loss=range(3, 8)), callbacks, tmp_path)
    assert [len(monitor.history) for monitor in callbacks] == [0, 0]
    messages = sayings(seen)
    assert len(messages) == 2
    assert all("from the first due one on had a loss and finite gradients" in m for m in messages)


@pytest.mark.parametrize("cls", MONITORS)
def test_a_training_shorter_than_the_interval_says_so_once_at_its_end(cls, tmp_path):
    monitor = cls(every_n_steps=500)
    with pytest.warns(UserWarning, match="nothing was measured") as seen:
        fit(Quadratic(), [monitor], tmp_path, accumulate_grad_batches=2)
    (message,) = sayings(seen)
    assert "steps 1 to 4 of this training hold no multiple of `every_n_steps`=500" in message


def test_a_training_that_was_told_before_is_not_told_at_its_end(tmp_path):
    with pytest.warns(UserWarning, match="is more than the 3 steps") as seen:
        fit(Quadratic(), [GradientHeterogeneityMonitor(500)], tmp_path, max_steps=3)
    assert len(sayings(seen)) == 1


def test_an_own_rule_that_chooses_no_step_is_said(tmp_path):
    class Never(GradientHeterogeneityMonitor):
        def should_measure(self, trainer):
            return False

    with pytest.warns(UserWarning, match="`should_measure` chose none of steps 1 to 8"):
        fit(Quadratic(), [Never(1)], tmp_path)


def test_optimizers_stepped_past_the_trainer_are_said(tmp_path):
    class Past(Quadratic):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.loss().backward()
            self.optimizers().optimizer.step()

    with pytest.warns(UserWarning, match="no optimizer of the trainer stepped at the due ones"):
        fit(Past(), [GradientHeterogeneityMonitor(2)], tmp_path)


def test_a_resumed_training_with_measurements_says_nothing(tmp_path):
    first = GradientHeterogeneityMonitor(8, on_error="raise")
    trainer = fit(Quadratic(), [first], tmp_path)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = GradientHeterogeneityMonitor(8, on_error="raise")
    trainer = lightning.Trainer(
        max_epochs=2, limit_train_batches=4, callbacks=[again], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=1)
    trainer.fit(Quadratic(), data, ckpt_path=tmp_path / "saved.ckpt")
    assert trainer.global_step == 12
    assert steps(again) == [7]


def test_a_callback_tells_its_failures_in_each_training(tmp_path):
    class Fails(Quadratic):
        def probe_loss(self, batch):
            raise RuntimeError("no loss")

    monitor = LinfSmoothnessMonitor(4, num_probes=4, max_overhead=None)
    for num_failures in (2, 4):
        with pytest.warns(UserWarning, match="no loss|failures in all") as seen:
            fit(Fails(), [monitor], tmp_path)
        messages = sayings(seen)
        assert "could not measure at step 3" in messages[0]
        assert f"{num_failures} failures in all, and 0 measurements" in messages[1]
        assert len(messages) == 2


def test_a_callback_of_a_second_training_says_that_it_measured_nothing_there(tmp_path):
    monitor = GradientHeterogeneityMonitor(8)
    fit(Quadratic(), [monitor], tmp_path)
    assert steps(monitor) == [7]
    with pytest.warns(UserWarning, match="steps 1 to 4 .*nothing was measured"):
        fit(Quadratic(), [monitor], tmp_path, limit_train_batches=4)


def test_two_monitors_with_names_keep_apart(tmp_path):
    pairs = [
        (
            LinfSmoothnessMonitor(4, num_probes=4, on_error="raise", max_overhead=None),
            LinfSmoothnessMonitor(
                4, num_probes=4, on_error="raise", name="double",
                probe_loss=lambda module, batch: 2 * module.loss(), max_overhead=None,
            ),
        ),
        (
            GradientHeterogeneityMonitor(4, on_error="raise"),
            GradientHeterogeneityMonitor(2, on_error="raise", name="often"),
        ),
    ]  # fmt: skip
    (plain, double), (seldom, often) = pairs
    logger = CSVLogger(tmp_path)
    trainer = fit(Quadratic(), [plain, double, seldom, often], tmp_path, logger=logger)
    assert [entry["lambda_max"] for entry in plain.history] == pytest.approx([2.0, 2.0], rel=1e-3)
    assert [entry["lambda_max"] for entry in double.history] == pytest.approx([4.0, 4.0], rel=1e-3)
    assert (len(seldom.history), len(often.history)) == (2, 4)
    assert trainer.callback_metrics[quantities.LAMBDA_MAX.tag] == pytest.approx(2.0, rel=1e-3)
    assert trainer.callback_metrics["geometry/double/lambda_max"] == pytest.approx(4.0, rel=1e-3)

    with open(f"{logger.log_dir}/geometry.jsonl") as file:
        records = [json.loads(line) for line in file]
    by_tag = {}
    for record in records:
        by_tag.setdefault(record["tag"], []).append(record)
    assert {tag: len(of_tag) for tag, of_tag in by_tag.items()} == {
        "geometry/smoothness_per_tensor": 2,
        "geometry/smoothness_per_tensor/double": 2,
        "geometry/heterogeneity_per_tensor": 2,
        "geometry/heterogeneity_per_tensor/often": 4,
    }
    logged = [set(of_tag[0]["scalars"]) for of_tag in by_tag.values()]
    assert sum(map(len, logged)) == len(set.union(*logged))
    assert {
        tag.split("/")[1] for tag in by_tag["geometry/smoothness_per_tensor/double"][0]["scalars"]
    } == {"double"}


def test_states_of_two_monitors_come_back_to_their_owners(tmp_path):
    def make():
        return [
            GradientHeterogeneityMonitor(8, on_error="raise"),
            GradientHeterogeneityMonitor(4, on_error="raise", name="often"),
        ]

    trainer = fit(Quadratic(), make(), tmp_path)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    callbacks = make()
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=callbacks, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=1)
    trainer.fit(Quadratic(), data, ckpt_path=tmp_path / "saved.ckpt")
    assert [steps(monitor) for monitor in callbacks] == [[7], [3, 7]]


def test_a_state_of_a_monitor_without_a_name_keeps_its_key():
    assert GradientHeterogeneityMonitor().state_key == "GradientHeterogeneityMonitor"
    assert LinfSmoothnessMonitor().state_key == "LinfSmoothnessMonitor{'mode': 'eval'}"


def test_a_monitor_and_one_derived_from_it_are_refused_without_a_name(tmp_path):
    class Other(LinfSmoothnessMonitor):
        pass

    with pytest.raises(MisconfigurationException, match=r"got 2, .* name='train'"):
        fit(Quadratic(), [LinfSmoothnessMonitor(1), Other(1)], tmp_path)
    named = Other(8, num_probes=4, on_error="raise", name="other", max_overhead=None)
    plain = LinfSmoothnessMonitor(8, num_probes=4, on_error="raise", max_overhead=None)
    fit(Quadratic(), [plain, named], tmp_path)
    assert plain.history[0]["lambda_max"] == named.history[0]["lambda_max"]


def test_a_loss_from_outside_serves_modules_that_step_by_hand(tmp_path):
    class ByHand(Quadratic):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss())
            optimizer.step()

        def probe_loss(self, batch):
            raise AssertionError("the argument takes its place")

    monitor = LinfSmoothnessMonitor(
        8,
        num_probes=4,
        on_error="raise",
        probe_loss=lambda module, batch: 3 * module.loss(),
        max_overhead=None,
    )
    module = ByHand()
    fit(module, [monitor], tmp_path)
    assert monitor.history[0]["lambda_max"] == pytest.approx(6.0, rel=1e-3)
    assert monitor.history[0]["probe_loss"] == pytest.approx(3 * module.loss().item())


def test_a_loss_of_train_mode_only_is_said_with_what_to_write(tmp_path):
    class Trains(Quadratic):
        def training_step(self, batch, batch_idx):
            return self.loss() if self.training else None

    with pytest.warns(UserWarning, match=r'Trains in eval mode.*Measure with mode="train"'):
        fit(Trains(), [LinfSmoothnessMonitor(8, num_probes=4, max_overhead=None)], tmp_path)
    monitor = LinfSmoothnessMonitor(
        8, num_probes=4, mode="train", on_error="raise", max_overhead=None
    )
    fit(Trains(), [monitor], tmp_path)
    assert monitor.history[0]["lambda_max"] == pytest.approx(2.0, rel=1e-3)


def test_a_poisoned_state_is_said_once_with_the_step_and_the_tensor(tmp_path):
    class Poisoned(Quadratic):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.9)

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                state = self.optimizers().optimizer.state[self.theta]
                state["momentum_buffer"][1] = math.nan

        def on_train_batch_end(self, *args):
            self.theta.data = torch.tensor([1.0, -2.0])  # so that gradients stay finite

    with pytest.warns(UserWarning, match="is not finite") as seen:
        fit(Poisoned(), [GradientHeterogeneityMonitor(1)], tmp_path)
    (message,) = sayings(seen)
    assert "momentum_buffer of theta is not finite at step 3" in message
    assert "Resume from a checkpoint" in message


def test_sparse_gradients_count_as_what_they_stand_for(tmp_path):
    class Words(Quadratic):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 1, sparse=True)

        def loss(self):
            return self.embedding(torch.tensor([0, 0, 2])).sum() + 0 * self.theta.sum()

    callbacks = monitors(8)
    fit(Words(), callbacks, tmp_path)
    entry = callbacks[0].history[0]
    assert entry["zero_fraction"] == 4 / 6
    assert entry["density"] == pytest.approx(9 / (6 * 5))  # of (0, 0, 2, 0, 1, 0)
    assert callbacks[1].history[0]["lambda_max"] == 0.0


def test_parameters_without_entries_are_counted_as_nothing(tmp_path):
    class Empty(Quadratic):
        def __init__(self, has_empty):
            super().__init__()
            if has_empty:
                self.empty = nn.Parameter(torch.empty(0, 4))

    def run(has_empty):
        callbacks = [*monitors(4), GradientNoiseMonitor(4, on_error="raise")]
        callbacks[1].partitions = ["row", "tensor"]
        fit(Empty(has_empty), callbacks, tmp_path, accumulate_grad_batches=2)
        return [callback.history for callback in callbacks]

    for ours, plain in zip(run(True), run(False), strict=True):
        assert [entry["tensor_names"] for entry in ours] == [["theta", "empty"]]
        timeless = ({"step", *ours[0]} - {"tensor_names", "per_tensor", "probe_seconds"}) - {
            "probe_overhead"
        }
        for name in timeless:
            assert ours[0][name] == pytest.approx(plain[0][name], rel=1e-6, nan_ok=True)
        for name, column in ours[0]["per_tensor"].items():
            torch.testing.assert_close(column[:1], plain[0]["per_tensor"][name], equal_nan=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientHeterogeneityMonitor(1.5), "`every_n_steps` to be a whole .* got 1.5"),
        (lambda: GradientNoiseMonitor("50"), "`every_n_steps` to be a whole .* got '50'"),
        (lambda: LinfSmoothnessMonitor(True), "`every_n_steps` to be a whole .* got True"),
        (lambda: LinfSmoothnessMonitor(1, num_probes=16.0), "`num_probes` to be a whole .* 16.0"),
        (lambda: LinfSmoothnessMonitor(1, num_batches=[2]), r"`num_batches` to be a .* got \[2\]"),
        (lambda: LinfSmoothnessMonitor(1, max_overhead="0.1"), "`max_overhead` to be a number > 0"),
        (lambda: LinfSmoothnessMonitor(1, max_overhead=True), "`max_overhead` to be a number > 0"),
        (lambda: LinfSmoothnessMonitor(1, seed=None), "`seed` to be a whole number, got None"),
        (lambda: LinfSmoothnessMonitor(1, mode=0), "`mode` to be one of 'eval', 'train', got 0"),
        (
            lambda: LinfSmoothnessMonitor(1, on_error=1),
            "`on_error` to be one of 'warn', 'raise', got 1",
        ),
        (lambda: LinfSmoothnessMonitor(1, partitions=5), "`partitions` to be a list .* got 5"),
        (lambda: LinfSmoothnessMonitor(1, probe_loss=3), "`probe_loss` to be a function or None"),
        (lambda: LinfSmoothnessMonitor(1, name="a/b"), "`name` of letters.* got 'a/b'"),
        (lambda: LinfSmoothnessMonitor(1, name=3), "`name` of letters.* got 3"),
        (lambda: LinfSmoothnessMonitor(1, name="noise"), "not that of a quantity.* got 'noise'"),
        (lambda: SwapOptimizer(1.0, Geometry("adam")), "`at_step` to be a whole number >= 0"),
        (lambda: SwapOptimizer(False, Geometry("adam")), "`at_step` to be a whole number >= 0"),
        (lambda: SwapOptimizer(-1, Geometry("adam")), "`at_step` >= 0, got -1. 0 swaps at once"),
        (lambda: SwapOptimizer(1, Geometry("adam"), 1), "`carry` True or False, got 1"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(make, message):
    with pytest.raises(ValueError, match=r"(Monitor|SwapOptimizer): expected .*" + message):
        make()
