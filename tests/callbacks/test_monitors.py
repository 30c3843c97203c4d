"""What all monitors share: which steps they measure, what they log, and what they refuse."""

import csv

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, TwoOptimizers, fit, loader
from torch import nn

from lightning_linf import quantities
from lightning_linf.callbacks import (
    GeometryMonitor,
    GradientHeterogeneityMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.callbacks import _probe_in_training as probe_module

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)


HETEROGENEITY = {
    quantities.DENSITY.tag,
    quantities.GINI.tag,
    quantities.TOP_ENERGY.tag,
    quantities.ZERO_FRACTION.tag,
    quantities.MEDIAN_LOG10_GRAD.tag,
    quantities.NUM_NONFINITE.tag,
}

SMOOTHNESS = {
    quantities.ONE_ONE_NORM_PER_PARAM.tag,
    quantities.LAMBDA_MAX.tag,
    quantities.SMOOTHNESS_RATIO.tag,
    quantities.ONE_ONE_NORM_ERROR.tag,
    quantities.LAMBDA_MAX_ERROR.tag,
    quantities.PROBE_LOSS.tag,
    quantities.PROBE_OVERHEAD.tag,
    quantities.PROBE_HVPS.tag,
    quantities.PROBE_SECONDS.tag,
    quantities.OPERATOR_NORM_LOWER.of("coordinate"),
    quantities.OPERATOR_NORM_UPPER.of("coordinate"),
    quantities.ADAPTIVE_LOWER.of("coordinate"),
    quantities.ADVANTAGE_LOWER.of("coordinate"),
    quantities.ADVANTAGE_UPPER.of("coordinate"),
    quantities.STEP_ADVANTAGE.of("coordinate"),
    quantities.CONVERGED.of("coordinate"),
    quantities.CONVERGED.of("global"),
    quantities.SECANT.of("coordinate"),
    quantities.SECANT.of("global"),
}


def test_a_module_of_one_parameter_tensor_is_measured(tmp_path):
    class One(Quadratic):
        def __init__(self):
            super().__init__()
            self.phi.requires_grad_(False)

    callbacks = [
        GradientHeterogeneityMonitor(1, on_error="raise"),
        LinfSmoothnessMonitor(1, num_probes=4, on_error="raise"),
    ]
    fit(One(), callbacks, tmp_path)
    for callback, column in zip(callbacks, ("density", "one_one_norm_share"), strict=True):
        assert callback.history[0]["tensor_names"] == ["theta"]
        assert callback.history[0]["per_tensor"][column].shape == (1,)


def test_every_scalar_is_logged_at_the_measured_steps_and_no_others(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    callbacks = [
        GradientHeterogeneityMonitor(every_n_steps=5, on_error="raise"),
        LinfSmoothnessMonitor(every_n_steps=10, num_probes=4, on_error="raise", max_overhead=None),
    ]
    fit(Quadratic(), callbacks, tmp_path, max_steps=20, logger=loggers, log_every_n_steps=5)

    events = EventAccumulator(loggers[0].log_dir)
    events.Reload()
    steps = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["train_loss"] == [4, 9, 14, 19]
    geometry = {tag: at for tag, at in steps.items() if tag.startswith(quantities.PREFIX)}
    assert geometry == {
        **{tag: [4, 9, 14, 19] for tag in HETEROGENEITY},
        **{tag: [9, 19] for tag in SMOOTHNESS},
    }
    logged = [e.value for e in events.Scalars(quantities.LAMBDA_MAX.tag)]
    assert logged == pytest.approx([entry["lambda_max"] for entry in callbacks[1].history])
    tag = next(tag for tag in events.Tags()["tensors"] if callbacks[0].record_tag in tag)
    records = events.Tensors(tag)
    assert [e.step for e in records] == [4, 9, 14, 19]
    assert [d.size for d in records[0].tensor_proto.tensor_shape.dim] == [2 + 1, 4 + 7]

    with open(f"{loggers[1].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row[quantities.DENSITY.tag]]
    assert [int(row["step"]) for row in rows] == [4, 9, 14, 19]


def test_accumulated_batches_are_one_step(tmp_path):
    callbacks = [
        GradientHeterogeneityMonitor(every_n_steps=2, on_error="raise"),
        LinfSmoothnessMonitor(
            every_n_steps=2, num_probes=4, num_batches=4, on_error="raise", max_overhead=None
        ),
    ]
    fit(Quadratic(), callbacks, tmp_path, max_steps=4, accumulate_grad_batches=4)
    for callback in callbacks:
        assert [entry["step"] for entry in callback.history] == [1, 3]


def test_nothing_is_touched_on_other_steps(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("measured on a step that is not due")

    monkeypatch.setattr(probe_module, "measure_landscape", fail)
    monkeypatch.setattr(GradientHeterogeneityMonitor, "_measure", fail)
    callbacks = [
        GradientHeterogeneityMonitor(every_n_steps=6, on_error="raise"),
        LinfSmoothnessMonitor(every_n_steps=6, on_error="raise"),
    ]
    with pytest.warns(UserWarning, match="`every_n_steps`=6, so nothing was measured"):
        fit(Quadratic(), callbacks, tmp_path, max_steps=6, limit_train_batches=5, max_epochs=1)
    with pytest.raises(AssertionError, match="not due"):
        fit(Quadratic(), callbacks, tmp_path, max_steps=6)


def test_should_measure_is_made_to_override(tmp_path):
    class Early(LinfSmoothnessMonitor):
        def should_measure(self, trainer):
            return trainer.global_step in (0, 2)  # asked before the step

    monitor = Early(num_probes=4, on_error="raise", every_n_steps=1, max_overhead=None)
    fit(Quadratic(), [monitor], tmp_path, max_steps=5)
    assert [entry["step"] for entry in monitor.history] == [0, 2]


def test_the_history_keeps_the_latest_measurements(tmp_path):
    class Short(GradientHeterogeneityMonitor):
        max_history = 3

    monitor = Short(1, on_error="raise")
    fit(Quadratic(), [monitor], tmp_path, max_steps=8)
    assert [entry["step"] for entry in monitor.history] == [5, 6, 7]
    assert [entry["step"] for entry in monitor.state_dict()["history"]] == [5, 6, 7]


def test_fast_dev_run_measures_once(tmp_path):
    callbacks = [GradientHeterogeneityMonitor(), LinfSmoothnessMonitor(num_probes=4)]
    fit(Quadratic(), callbacks, tmp_path, fast_dev_run=True)
    assert [len(callback.history) for callback in callbacks] == [1, 1]


def test_barebones_is_skipped_with_one_warning(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1)
    trainer = lightning.Trainer(barebones=True, callbacks=[monitor], max_steps=2, accelerator="cpu")
    module = Quadratic()
    module.log = lambda *args: None
    with pytest.warns(UserWarning, match="barebones=True") as seen:
        trainer.fit(module, loader())
    assert len([w for w in seen if "GradientHeterogeneityMonitor" in str(w.message)]) == 1
    assert monitor.history == []


def test_an_interval_that_is_never_reached_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"`every_n_steps`=500 is more than the 3 steps"):
        fit(Quadratic(), [LinfSmoothnessMonitor()], tmp_path, max_steps=3)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
@pytest.mark.parametrize("monitor", [GradientHeterogeneityMonitor, LinfSmoothnessMonitor])
def test_flat_shards_are_refused(strategy, monitor):
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.__class__ = strategy
    with pytest.raises(
        MisconfigurationException, match=f"got {strategy.__name__}, .*ModelParallelStrategy, and"
    ):
        monitor().setup(trainer, Quadratic(), "fit")


def test_two_monitors_of_a_class_are_refused_as_they_would_share_their_tags(tmp_path):
    twins = [LinfSmoothnessMonitor(1), LinfSmoothnessMonitor(1, mode="train")]
    with pytest.raises(MisconfigurationException, match=r"one callback of this class .* got 2"):
        fit(Quadratic(), twins, tmp_path)
    assert twins[0].state_key != twins[1].state_key


def test_manual_optimization_that_skips_batches_is_measured_at_its_steps(tmp_path):
    class EveryThird(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            if batch_idx % 3 == 1:
                super().training_step(batch, batch_idx)

        def probe_loss(self, batch):
            return self.theta.square().sum()

    callbacks = [
        GradientHeterogeneityMonitor(5, on_error="raise"),
        LinfSmoothnessMonitor(5, num_probes=4, on_error="raise", max_overhead=None),
    ]
    fit(EveryThird(), callbacks, tmp_path, max_steps=100, limit_train_batches=20, max_epochs=1)
    assert [entry["step"] for entry in callbacks[0].history[::2]] == [4, 10, 16, 19]
    assert [entry["step"] for entry in callbacks[1].history] == [4, 10, 16, 19]


def test_both_monitors_count_the_same_parameters(tmp_path):
    class Extra(Quadratic):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(6))
            self.average = nn.Parameter(torch.zeros(100))  # not in the optimizer

        def configure_optimizers(self):
            return torch.optim.SGD([self.theta, self.phi, self.unused], lr=self.lr)

    callbacks = [
        GradientHeterogeneityMonitor(1),
        LinfSmoothnessMonitor(1, num_probes=4, max_overhead=None),
    ]
    fit(Extra(), callbacks, tmp_path)
    for callback in callbacks:
        assert callback.history[0]["tensor_names"] == ["theta", "phi", "unused"]
    assert callbacks[0].history[0]["density"] == pytest.approx(29**2 / (12 * 423))


def test_each_cause_is_reported_once_and_failures_are_counted(tmp_path):
    class Fails(Quadratic):
        def probe_loss(self, batch):
            if self.global_step < 3:
                raise RuntimeError(f"no loss at {self.global_step}")
            return self.theta

    monitor = LinfSmoothnessMonitor(1, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="LinfSmoothnessMonitor") as seen:
        fit(Fails(), [monitor], tmp_path, max_steps=6)
    messages = [str(w.message) for w in seen if "LinfSmoothnessMonitor" in str(w.message)]
    assert len(messages) == 3
    assert "RuntimeError: no loss at 1" in messages[0]
    assert "expected a scalar loss" in messages[1]
    assert "6 failures in all, and 0 measurements" in messages[2]


def test_one_loggers_failure_does_not_keep_numbers_from_the_others(tmp_path):
    class Broken(CSVLogger):
        def log_metrics(self, metrics, step=None):
            raise OSError("disk full")

    loggers = [Broken(tmp_path, name="a"), CSVLogger(tmp_path, name="b")]
    monitor = GradientHeterogeneityMonitor(1)

    class Silent(Quadratic):
        def training_step(self, batch, batch_idx):
            return (self.scale * self.theta.square()).sum() / 2

    with pytest.warns(UserWarning, match="could not log to Broken at step 0 .* disk full"):
        fit(Silent(), [monitor], tmp_path, logger=loggers, log_every_n_steps=50)
    with open(f"{loggers[1].log_dir}/metrics.csv") as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize(
    ("monitor", "arguments", "message"),
    [
        (GradientHeterogeneityMonitor, {"every_n_steps": 0}, "`every_n_steps` >= 1, got 0"),
        (GradientHeterogeneityMonitor, {"on_error": "ignore"}, "'raise', got 'ignore'"),
        (LinfSmoothnessMonitor, {"every_n_steps": -1}, "`every_n_steps` >= 1, got -1"),
        (LinfSmoothnessMonitor, {"num_probes": 3}, "`num_probes` >= 4, got 3"),
        (LinfSmoothnessMonitor, {"num_batches": 0}, "`num_batches` >= 1, got 0"),
        (LinfSmoothnessMonitor, {"max_overhead": 0.0}, "`max_overhead` > 0 .* got 0.0"),
        (LinfSmoothnessMonitor, {"mode": "test"}, "'train', got 'test'"),
    ],
)
def test_constructor_refusals(monitor, arguments, message):
    with pytest.raises(ValueError, match=f"{monitor.__name__}: expected .*{message}"):
        monitor(**arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, at Lightning's calls
def test_lightning_cli_builds_the_monitors(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    arguments = [
        "--seed_everything=0",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.logger=false",
        "--trainer.callbacks+=lightning_linf.callbacks.LinfSmoothnessMonitor",
        "--trainer.callbacks.num_probes=8",
        "--trainer.callbacks.max_overhead=0.1",
        "--trainer.callbacks.mode=train",
        "--trainer.callbacks+=lightning_linf.callbacks.GradientHeterogeneityMonitor",
        "--trainer.callbacks.every_n_steps=7",
    ]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    cli = LightningCLI(Quadratic, run=False, save_config_callback=None)
    monitors = [c for c in cli.trainer.callbacks if isinstance(c, GeometryMonitor)]
    assert (monitors[0].num_probes, monitors[0].max_overhead, monitors[0].mode) == (8, 0.1, "train")
    assert monitors[1].every_n_steps == 7


def test_a_monitor_of_ones_own_measures_when_due_and_its_errors_are_handled(tmp_path):
    class GradientNorm(GeometryMonitor):
        record_tag = quantities.PREFIX + "gradient_norm_per_tensor"
        num_released = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if self.is_due(trainer):
                with self.errors_handled(trainer, "measure"):
                    if trainer.global_step == 3:
                        raise ValueError("no norm today")
                    gradients = {n: p.grad for n, p in pl_module.named_parameters()}
                    norms = torch.stack([g.norm() for g in gradients.values()])
                    scalars = {quantities.PREFIX + "gradient_norm": float(norms.norm())}
                    self.record(trainer, scalars, {"norm": norms}, list(gradients))

        def release(self):
            self.num_released += 1

    monitor = GradientNorm(every_n_steps=2)
    with pytest.warns(UserWarning, match="could not measure at step 3 .*: no norm today"):
        trainer = fit(Quadratic(), [monitor], tmp_path, max_steps=6)
    assert [entry["step"] for entry in monitor.history] == [1, 5]
    assert monitor.history[0]["per_tensor"]["norm"].shape == (2,)
    assert trainer.callback_metrics["geometry/gradient_norm"] == monitor.history[1]["gradient_norm"]
    assert monitor.num_released == 1
