"""What the monitors log, when, and what they refuse."""

import csv
import math

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import Partition, tags
from lightning_linf.callbacks import (
    GeometryMonitor,
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.callbacks import _budget as budget_module
from lightning_linf.callbacks import smoothness as smoothness_module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*Checkpoint directory .* exists:UserWarning",
)

HETEROGENEITY = {
    tags.DENSITY,
    tags.GINI,
    tags.TOP_ENERGY,
    tags.ZERO_FRACTION,
    tags.MEDIAN_LOG10_GRAD,
    tags.NUM_NONFINITE,
}
SMOOTHNESS = {
    tags.ONE_ONE_NORM_PER_PARAM,
    tags.LAMBDA_MAX,
    tags.SMOOTHNESS_RATIO,
    tags.ONE_ONE_NORM_ERROR,
    tags.LAMBDA_MAX_ERROR,
    tags.PROBE_LOSS,
    tags.PROBE_OVERHEAD,
    tags.PROBE_HVPS,
    tags.PROBE_SECONDS,
    tags.of_partition(tags.OPERATOR_NORM_LOWER, "coordinate"),
    tags.of_partition(tags.OPERATOR_NORM_UPPER, "coordinate"),
    tags.of_partition(tags.ADVANTAGE_LOWER, "coordinate"),
    tags.of_partition(tags.ADVANTAGE_UPPER, "coordinate"),
    tags.of_partition(tags.STEP_ADVANTAGE, "coordinate"),
    tags.of_partition(tags.CONVERGED, "coordinate"),
    tags.of_partition(tags.CONVERGED, "global"),
    tags.of_partition(tags.SECANT, "coordinate"),
    tags.of_partition(tags.SECANT, "global"),
}


class Quadratic(lightning.LightningModule):
    """The loss sum(scale * theta^2) / 2 + 3 sum(phi): gradients and Hessian known."""

    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 2.0, 0.0, -2.0]))
        self.phi = nn.Parameter(torch.zeros(2))
        self.register_buffer("scale", torch.tensor([1.0, 1.0, 1.0, 10.0]))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        loss = (self.scale * self.theta.square()).sum() / 2 + 3 * self.phi.sum()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def loader(length=64):
    return DataLoader(TensorDataset(torch.zeros(length, 1)), batch_size=1)


def fit(module, callbacks, tmp_path, **options):
    defaults = {
        "max_steps": 1,
        "logger": False,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    trainer = lightning.Trainer(callbacks=callbacks, **{**defaults, **options})
    trainer.fit(module, loader())
    return trainer


def test_heterogeneity_is_that_of_the_gradient_of_the_step(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    trainer = fit(Quadratic(), [monitor], tmp_path)
    (entry,) = monitor.history
    # the gradient is (1, 2, 0, -20, 3, 3): norm1 29, norm2^2 423
    assert entry["step"] == 0
    assert entry["density"] == pytest.approx(29**2 / (6 * 423), rel=1e-12)
    assert entry["zero_fraction"] == 1 / 6
    assert entry["num_nonfinite"] == 0.0
    assert entry["median_log10_grad"] == pytest.approx(math.log10(3), abs=0.0134)
    assert entry["tensor_names"] == ["theta", "phi"]
    torch.testing.assert_close(
        entry["per_tensor"]["density"], torch.tensor([23**2 / (4 * 405), 1.0])
    )
    assert trainer.callback_metrics[tags.DENSITY] == torch.tensor(entry["density"])


def test_smoothness_is_that_of_the_hessian_after_the_step(tmp_path):
    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=64, on_error="raise")
    fit(Quadratic(), [monitor], tmp_path)
    (entry,) = monitor.history
    assert entry["lambda_max"] == pytest.approx(10.0, rel=1e-3)
    # a diagonal of (1, 1, 1, 10, 0, 0), and more probes than parameters: exact
    assert entry["one_one_norm_per_param"] == pytest.approx(13 / 6, rel=1e-6)
    assert entry["smoothness_ratio"] == pytest.approx(
        entry["lambda_max"] / entry["one_one_norm_per_param"]
    )
    theta = torch.tensor([0.99, 1.98, 0.0, -1.8])
    loss = (torch.tensor([1.0, 1.0, 1.0, 10.0]) * theta.square()).sum() / 2 - 3 * 0.06
    assert entry["probe_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert entry["probe_hvps"] == 6 + 2  # the Hessian, and along two steps
    torch.testing.assert_close(entry["per_tensor"]["one_one_norm_share"], torch.tensor([1.0, 0.0]))


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


def test_gradients_are_read_before_clipping(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    fit(Quadratic(), [monitor], tmp_path, gradient_clip_val=1e-3)
    assert monitor.history[0]["median_log10_grad"] == pytest.approx(math.log10(3), abs=0.0134)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_read_unscaled_under_a_gradient_scaler(tmp_path, fused):
    class Scaled(Quadratic):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr, fused=fused)

    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    plugin = MixedPrecision("16-mixed", "cpu")
    trainer = fit(Scaled(), [monitor], tmp_path, plugins=[plugin])
    assert trainer.precision_plugin.scaler.get_scale() > 1.0
    assert monitor.history[0]["median_log10_grad"] == pytest.approx(math.log10(3), abs=0.0134)


def test_every_scalar_is_logged_at_the_measured_steps_and_no_others(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    callbacks = [
        GradientHeterogeneityMonitor(every_n_steps=5, on_error="raise"),
        LinfSmoothnessMonitor(every_n_steps=10, num_probes=4, on_error="raise"),
    ]
    fit(Quadratic(), callbacks, tmp_path, max_steps=20, logger=loggers, log_every_n_steps=5)

    events = EventAccumulator(loggers[0].log_dir)
    events.Reload()
    steps = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["train_loss"] == [4, 9, 14, 19]
    geometry = {tag: at for tag, at in steps.items() if tag.startswith(tags.PREFIX)}
    assert geometry == {
        **{tag: [4, 9, 14, 19] for tag in HETEROGENEITY},
        **{tag: [9, 19] for tag in SMOOTHNESS},
    }
    logged = [e.value for e in events.Scalars(tags.LAMBDA_MAX)]
    assert logged == pytest.approx([entry["lambda_max"] for entry in callbacks[1].history])
    tag = next(tag for tag in events.Tags()["tensors"] if callbacks[0].record_tag in tag)
    records = events.Tensors(tag)
    assert [e.step for e in records] == [4, 9, 14, 19]
    assert [d.size for d in records[0].tensor_proto.tensor_shape.dim] == [2 + 1, 4 + 7]

    with open(f"{loggers[1].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row[tags.DENSITY]]
    assert [int(row["step"]) for row in rows] == [4, 9, 14, 19]


def test_accumulated_batches_are_one_step(tmp_path):
    callbacks = [
        GradientHeterogeneityMonitor(every_n_steps=2, on_error="raise"),
        LinfSmoothnessMonitor(every_n_steps=2, num_probes=4, num_batches=4, on_error="raise"),
    ]
    fit(Quadratic(), callbacks, tmp_path, max_steps=4, accumulate_grad_batches=4)
    for callback in callbacks:
        assert [entry["step"] for entry in callback.history] == [1, 3]


def test_nothing_is_touched_on_other_steps(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("measured on a step that is not due")

    monkeypatch.setattr(smoothness_module, "measure_landscape", fail)
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

    monitor = Early(num_probes=4, on_error="raise", every_n_steps=1)
    fit(Quadratic(), [monitor], tmp_path, max_steps=5)
    assert [entry["step"] for entry in monitor.history] == [0, 2]


def test_secant_smoothness_is_that_of_the_step_just_made(tmp_path):
    monitor = LinfSmoothnessMonitor(every_n_steps=2, partitions=["tensor"], on_error="raise")
    fit(Quadratic(), [monitor], tmp_path, max_steps=2, gradient_clip_val=1.0)
    # theta after two clipped steps; a step and the change of the gradient along it are parallel
    # to (1, 2, 0, -20; 3, 3) and (1, 2, 0, -200; 0, 0) at first, and nearly so at the second
    theta, phi = torch.tensor([1.0, 2.0, 0.0, -2.0]), torch.zeros(2)
    scale = torch.tensor([1.0, 1.0, 1.0, 10.0])
    for _ in range(2):
        gradient = torch.cat([scale * theta, torch.full((2,), 3.0)])
        step = -0.01 * gradient / max(1.0, gradient.norm())
        theta, phi = theta + step[:4], phi + step[4:]
    change = torch.cat([scale * step[:4], torch.zeros(2)])
    (entry,) = monitor.history
    expected = {
        "coordinate": change.abs().sum() / step.abs().max(),
        "global": 6 * change.norm() / step.norm(),
        "tensor": 2 * change[:4].norm() / max(step[:4].norm() / 2, step[4:].norm() / 2**0.5),
    }
    for name, value in expected.items():
        assert entry[f"secant/{name}"] == pytest.approx(float(value) / 6, rel=1e-4)
    assert monitor.last_report.secant["global"] == pytest.approx(6 * entry["secant/global"])
    assert monitor._before == {}


def test_noise_needs_several_batches_and_leaves_its_tags_to_the_noise_monitor(tmp_path):
    keys = {}
    for name, num_batches, others in (
        ("one", 1, []),
        ("two", 2, []),
        ("beside", 2, [GradientNoiseMonitor(2)]),
    ):
        monitor = LinfSmoothnessMonitor(2, num_batches=num_batches, on_error="raise")
        fit(Quadratic(), [monitor, *others], tmp_path, max_steps=2, accumulate_grad_batches=2)
        keys[name] = {key for key in monitor.history[0] if key.startswith("noise")}
    assert keys["one"] == keys["beside"] == set()
    assert keys["two"] == {
        "noise_trace", "noise_trace_relative_error", "noise_scale", "noise/coordinate",
        "noise/global",
    }  # fmt: skip


class Matrix(Quadratic):
    """Holds a matrix of which nothing says what its rows are."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 3))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.table.square().sum()


def test_rows_of_a_raw_parameter_are_measured_and_can_be_stated(tmp_path):
    for options, num_blocks in (({}, 2 + 6), ({"output_dims": {"table": 1}}, 3 + 6)):
        monitor = LinfSmoothnessMonitor(
            1, partitions=["row"], num_probes=4, on_error="raise", **options
        )
        fit(Matrix(), [monitor], tmp_path)
        assert monitor.last_report.smoothness["row"].num_blocks == num_blocks


class Parametrized(Matrix):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.orthogonal(self, "table")


class Fused(Quadratic):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        outputs = self.out(self.qkv(torch.ones(4)).reshape(3, 4))
        return super().training_step(batch, batch_idx) + outputs.square().sum()


def test_heads_are_measured_where_an_argument_tells_their_order(tmp_path):
    monitor = LinfSmoothnessMonitor(
        1, partitions=["head"], num_probes=4, on_error="raise", fused_qkv="qkv_head"
    )
    fit(Fused(), [monitor], tmp_path)
    assert monitor.last_report.smoothness["head"].num_blocks == 2 + 6 + 6 + 2 + 1
    with pytest.raises(ValueError, match=r"`fused_qkv` to be one of .* got 'kqv'"):
        LinfSmoothnessMonitor(fused_qkv="kqv")
    with pytest.raises(ValueError, match=r"LinfSmoothnessMonitor: expected `output_dims` .* got 3"):
        LinfSmoothnessMonitor(output_dims=3)


def test_a_partition_without_a_place_for_a_parameter_is_left_out_with_a_warning(tmp_path):
    monitor = LinfSmoothnessMonitor(1, partitions=["row", "tensor"], num_probes=4)
    with pytest.warns(UserWarning, match="measures without 'row'") as seen:
        fit(Parametrized(), [monitor], tmp_path, max_steps=2)
    assert len([w for w in seen if "LinfSmoothnessMonitor" in str(w.message)]) == 1
    assert len(monitor.history) == 2
    assert list(monitor.last_report.smoothness) == ["tensor", "coordinate", "global"]
    strict = LinfSmoothnessMonitor(1, partitions=["row"], num_probes=4, on_error="raise")
    with pytest.raises(ValueError, match="table"):
        fit(Parametrized(), [strict], tmp_path)


def test_make_partitions_is_made_to_override(tmp_path):
    class Own(LinfSmoothnessMonitor):
        def make_partitions(self, pl_module, parameters):
            own = Partition.of(pl_module, "row", parameters=parameters, output_dims={"table": 1})
            return [own]

    monitor = Own(1, num_probes=4, on_error="raise")
    fit(Matrix(), [monitor], tmp_path)
    assert monitor.history[0]["smoothness_upper/row"] > 0
    assert monitor.last_report.smoothness["row"].num_blocks == 3 + 6


@pytest.mark.parametrize("partitions", ["row", ["rows"], ["row", 3]])
def test_unknown_partitions_are_refused_at_once(partitions):
    with pytest.raises(ValueError, match="expected `partitions` to be a list of names out of"):
        LinfSmoothnessMonitor(partitions=partitions)


class Clock:
    """Training takes 1 s a step, a probe 4 s."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(budget_module.time, "perf_counter", lambda: self.now)
        measure = smoothness_module.measure_landscape

        def slow(*args, **kwargs):
            self.now += 4.0
            return measure(*args, **kwargs)

        monkeypatch.setattr(smoothness_module, "measure_landscape", slow)


def test_max_overhead_stretches_the_interval(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    class Timed(Quadratic):
        def on_train_batch_start(self, batch, batch_idx):
            clock.now += 1.0

    monitor = LinfSmoothnessMonitor(1, num_probes=4, max_overhead=0.2, on_error="raise")
    fit(Timed(), [monitor], tmp_path, max_steps=64)
    # the first probe is free of charge; then 4 k <= 0.2 n before the k-th
    assert [entry["step"] for entry in monitor.history] == [0, 39, 59]
    assert monitor.state_dict()["seconds"] == {"probe": 12.0, "train": 64.0, "last": 4.0}
    assert [entry["probe_seconds"] for entry in monitor.history] == [4.0, 4.0, 4.0]
    assert [entry["probe_overhead"] for entry in monitor.history] == [4.0, 0.2, 0.2]
    resumed = LinfSmoothnessMonitor(1, num_probes=4, max_overhead=0.2)
    resumed.load_state_dict(monitor.state_dict())
    assert not resumed._budget.is_affordable()  # 12 + 4 s of 64
    unlimited = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise")
    fit(Timed(), [unlimited], tmp_path, max_steps=3)
    assert len(unlimited.history) == 3


def test_the_history_keeps_the_latest_measurements(tmp_path):
    class Short(GradientHeterogeneityMonitor):
        max_history = 3

    monitor = Short(1, on_error="raise")
    fit(Quadratic(), [monitor], tmp_path, max_steps=8)
    assert [entry["step"] for entry in monitor.history] == [5, 6, 7]
    assert [entry["step"] for entry in monitor.state_dict()["history"]] == [5, 6, 7]


class TwoOptimizers(Quadratic):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([self.theta], 0.01), torch.optim.SGD([self.phi], 0.01)]


def test_each_of_several_optimizers_has_its_own_tags(tmp_path):
    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    trainer = fit(TwoOptimizers(), [monitor], tmp_path, max_steps=2)
    assert [entry["tensor_names"] for entry in monitor.history] == [["theta"], ["phi"]]
    assert monitor.history[1]["density/optimizer1"] == 1.0
    assert tags.DENSITY + "/optimizer0" in trainer.callback_metrics


def test_manual_optimization_is_not_probed_and_goes_on(tmp_path):
    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4)
    with pytest.warns(UserWarning, match="LinfSmoothnessMonitor") as seen:
        trainer = fit(TwoOptimizers(), [monitor], tmp_path, max_steps=6)
    assert trainer.global_step == 6
    messages = [str(w.message) for w in seen if "LinfSmoothnessMonitor" in str(w.message)]
    assert len(messages) == 2
    assert "at step 0" in messages[0]
    assert "TwoOptimizers.probe_loss(batch)" in messages[0]
    assert "3 failures in all" in messages[1]
    assert monitor.history == []


def test_manual_optimization_with_probe_loss_is_probed(tmp_path):
    class Probed(TwoOptimizers):
        def probe_loss(self, batch):
            return (self.scale * self.theta.square()).sum() / 2

    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, on_error="raise")
    fit(Probed(), [monitor], tmp_path, max_steps=2)
    assert monitor.history[0]["lambda_max"] == pytest.approx(10.0, rel=1e-3)


def test_on_error_raise_ends_the_training(tmp_path):
    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, on_error="raise")
    with pytest.raises(RuntimeError, match="expected automatic optimization"):
        fit(TwoOptimizers(), [monitor], tmp_path, max_steps=2)


def test_nonfinite_gradients_are_counted_and_survived(tmp_path):
    class Infinite(Quadratic):
        def on_after_backward(self):
            self.theta.grad[0] = math.nan
            self.phi.grad[1] = math.inf

    monitor = GradientHeterogeneityMonitor(every_n_steps=1, on_error="raise")
    with pytest.warns(UserWarning, match="Monitor: ") as seen:
        fit(Infinite(), [monitor], tmp_path, max_steps=3)
    (message,) = [str(w.message) for w in seen if "HeterogeneityMonitor" in str(w.message)]
    assert "2 entries of the gradient are inf or NaN at step 0, first in theta" in message
    assert monitor.history[0]["num_nonfinite"] == 2.0
    assert monitor.history[0]["density"] == pytest.approx(25**2 / (4 * 413))


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
        MisconfigurationException, match=f"got {strategy.__name__}, .*ModelParallelStrategy with"
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
        LinfSmoothnessMonitor(5, num_probes=4, on_error="raise"),
    ]
    fit(EveryThird(), callbacks, tmp_path, max_steps=100, limit_train_batches=20, max_epochs=1)
    assert [entry["step"] for entry in callbacks[0].history[::2]] == [4, 10, 16, 19]
    assert [entry["step"] for entry in callbacks[1].history] == [4, 10, 16, 19]


def test_a_batch_that_training_step_empties_is_probed_as_it_came(tmp_path):
    class Pops(Quadratic):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.pop(0), batch_idx)

    monitor = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise")
    fit(Pops(), [monitor], tmp_path, max_steps=2)
    assert len(monitor.history) == 2


def test_a_batch_that_training_step_overwrites_is_not_probed(tmp_path):
    class Overwrites(Quadratic):
        def training_step(self, batch, batch_idx):
            batch[0].add_(1)
            return super().training_step(batch, batch_idx)

    monitor = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise")
    with pytest.raises(RuntimeError, match="its tensors were changed in place"):
        fit(Overwrites(), [monitor], tmp_path)


def test_the_probe_sees_the_batch_index_of_the_training(tmp_path):
    class Alternating(Quadratic):
        def training_step(self, batch, batch_idx):
            return (1 + batch_idx % 2) * super().training_step(batch, batch_idx)

    monitor = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise")
    fit(Alternating(), [monitor], tmp_path, max_steps=2)
    values = [entry["lambda_max"] for entry in monitor.history]
    assert values == pytest.approx([10.0, 20.0], rel=1e-3)


def test_both_monitors_count_the_same_parameters(tmp_path):
    class Extra(Quadratic):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(6))
            self.average = nn.Parameter(torch.zeros(100))  # not in the optimizer

        def configure_optimizers(self):
            return torch.optim.SGD([self.theta, self.phi, self.unused], lr=self.lr)

    callbacks = [GradientHeterogeneityMonitor(1), LinfSmoothnessMonitor(1, num_probes=4)]
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

    monitor = LinfSmoothnessMonitor(1, num_probes=4)
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
        (GradientHeterogeneityMonitor, {"on_error": "ignore"}, "\"raise\", got 'ignore'"),
        (LinfSmoothnessMonitor, {"every_n_steps": -1}, "`every_n_steps` >= 1, got -1"),
        (LinfSmoothnessMonitor, {"num_probes": 3}, "`num_probes` >= 4, got 3"),
        (LinfSmoothnessMonitor, {"num_batches": 0}, "`num_batches` >= 1, got 0"),
        (LinfSmoothnessMonitor, {"max_overhead": 0.0}, "`max_overhead` > 0 .* got 0.0"),
        (LinfSmoothnessMonitor, {"mode": "test"}, "\"train\", got 'test'"),
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


@pytest.mark.parametrize(
    ("bar", "options"),
    [("RichProgressBar", {"console_kwargs": {"force_terminal": True}}), ("TQDMProgressBar", {})],
)
def test_probes_show_in_the_trainers_own_progress_bar(tmp_path, bar, options, capsys):
    if bar == "RichProgressBar":
        pytest.importorskip("rich", reason="needs lightning-linf[recipes]")
    progress = getattr(lightning.pytorch.callbacks, bar)(**options)
    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, on_error="raise")
    fit(Quadratic(), [progress, monitor], tmp_path, enable_progress_bar=True)
    captured = capsys.readouterr()
    assert "Probing" in captured.out + captured.err
    assert len(monitor.history) == 1
