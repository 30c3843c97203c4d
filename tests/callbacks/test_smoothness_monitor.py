"""What LinfSmoothnessMonitor measures, when, and at what cost."""

import lightning
import pytest
import torch
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, TwoOptimizers, fit
from torch import nn

from lightning_linf import Partition
from lightning_linf.callbacks import (
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.callbacks import _budget as budget_module
from lightning_linf.callbacks import _probe_in_training as probe_module
from lightning_linf.optim import Reparameterized
from lightning_linf.reparam import Rotation

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)


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
    assert monitor._last_step._before == {}


class Rotated(Quadratic):
    """Its optimizer steps a rotation of the parameters, which it lists in another order."""

    def configure_optimizers(self):
        return Reparameterized(
            [self.phi, self.theta], lambda p: torch.optim.SGD(p, 0.01), Rotation(seed=3)
        )


def test_coordinates_of_the_optimizer_are_those_in_which_it_steps(tmp_path):
    monitors = [
        LinfSmoothnessMonitor(1, num_probes=64, on_error="raise", coordinates=where, name=where[0])
        for where in ("optimizer", "parameters")
    ]
    fit(Rotated(), monitors, tmp_path)
    rotated, plain = (monitor.last_report for monitor in monitors)
    vectors = torch.eye(6)  # of the optimizer's order: first two of phi, then four of theta
    rotation = Rotation(seed=3).bind([torch.Size([2]), torch.Size([4])])
    dense = torch.stack([rotation.apply(one) for one in vectors], dim=1)
    hessian = dense.T @ torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 10.0])) @ dense
    assert rotated.one_one_norm == pytest.approx(float(hessian.abs().sum()), rel=1e-5)
    assert plain.one_one_norm == pytest.approx(13.0, rel=1e-6)
    assert rotated.one_one_norm > 1.5 * plain.one_one_norm
    assert rotated.lambda_max == pytest.approx(plain.lambda_max, rel=1e-5)
    assert (rotated.secant, plain.secant is None) == (None, False)
    name = repr(Rotation(seed=3))
    assert rotated.settings["coordinates"] == f"the optimizer, {name}"
    assert plain.settings["coordinates"] == "parameters"
    assert plain.settings["optimizer_coordinates"] == name
    assert f"in the coordinates of the optimizer, {name}" in " ".join(str(rotated).split())
    assert f"The optimizer steps in {name}." in " ".join(str(plain).split())


def test_an_optimizer_that_steps_the_parameters_has_their_coordinates(tmp_path):
    monitor = LinfSmoothnessMonitor(1, coordinates="optimizer", on_error="raise")
    fit(Quadratic(), [monitor], tmp_path)
    assert monitor.last_report.settings["coordinates"] == "parameters"
    assert "optimizer_coordinates" not in monitor.last_report.settings
    with pytest.raises(ValueError, match="expected `coordinates`"):
        LinfSmoothnessMonitor(1, coordinates="rotated")


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
        "noise/global", "noise_scale_lower/coordinate", "noise_scale_lower/global",
        "noise_scale_upper/coordinate", "noise_scale_upper/global",
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
    monitor = LinfSmoothnessMonitor(
        1, partitions=["row", "tensor"], num_probes=4, max_overhead=None
    )
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
        measure = probe_module.measure_landscape

        def slow(*args, **kwargs):
            self.now += 4.0
            return measure(*args, **kwargs)

        monkeypatch.setattr(probe_module, "measure_landscape", slow)


def test_max_overhead_stretches_the_interval_and_is_said_once(tmp_path, monkeypatch, caplog):
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
    (said,) = [r.getMessage() for r in caplog.records if "max_overhead" in r.getMessage()]
    assert said.startswith(
        "LinfSmoothnessMonitor: step 1 is due and not measured. With another probe of 4 s, probes "
        "would take more than `max_overhead`=0.2 of the training time (so far 4 s of probes in 2 s"
    )
    resumed = LinfSmoothnessMonitor(1, num_probes=4, max_overhead=0.2)
    resumed.load_state_dict(monitor.state_dict())
    assert not resumed._budget.is_affordable()  # 12 + 4 s of 64
    unlimited = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise", max_overhead=None)
    fit(Timed(), [unlimited], tmp_path, max_steps=3)
    assert len(unlimited.history) == 3
    caplog.clear()
    fit(Timed(), [unlimited, by_default := LinfSmoothnessMonitor(1, num_probes=4, name="other")],
        tmp_path, max_steps=3)  # fmt: skip
    assert (len(unlimited.history), len(by_default.history)) == (6, 1)
    assert len([r for r in caplog.records if "`max_overhead`=0.1" in r.getMessage()]) == 1


def test_manual_optimization_is_not_probed_and_goes_on(tmp_path):
    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, max_overhead=None)
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

    monitor = LinfSmoothnessMonitor(
        every_n_steps=1, num_probes=4, on_error="raise", max_overhead=None
    )
    fit(Probed(), [monitor], tmp_path, max_steps=2)
    assert monitor.history[0]["lambda_max"] == pytest.approx(10.0, rel=1e-3)


def test_on_error_raise_ends_the_training(tmp_path):
    monitor = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, on_error="raise")
    with pytest.raises(RuntimeError, match="expected automatic optimization"):
        fit(TwoOptimizers(), [monitor], tmp_path, max_steps=2)


def test_a_batch_that_training_step_empties_is_probed_as_it_came(tmp_path):
    class Pops(Quadratic):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.pop(0), batch_idx)

    monitor = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise", max_overhead=None)
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

    monitor = LinfSmoothnessMonitor(1, num_probes=4, on_error="raise", max_overhead=None)
    fit(Alternating(), [monitor], tmp_path, max_steps=2)
    values = [entry["lambda_max"] for entry in monitor.history]
    assert values == pytest.approx([10.0, 20.0], rel=1e-3)


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
