"""What StepMonitor logs of a step, that it agrees with derivatives, and what faults do to it."""

import copy
import math

import lightning
import pytest
import torch
from support.bit_identity import IGNORED_WARNINGS as MORE_WARNINGS
from support.bit_identity import assert_same, trace, train
from support.faulty_training import Regression, at_probes, weights
from support.faulty_training import fit as fit_regression
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, TwoOptimizers, fit
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from lightning_linf import quantities
from lightning_linf.callbacks import EdgeMonitor, StepMonitor
from lightning_linf.errors import RestoreError
from lightning_linf.record import Reader
from lightning_linf.runs.load import load

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS, *MORE_WARNINGS)
SCALE = torch.tensor([1.0, 1.0, 1.0, 10.0])


def monitor(every_n_steps=1, **options):
    return StepMonitor(every_n_steps, **{"on_error": "raise", "max_overhead": None, **options})


def test_of_a_quadratic_all_numbers_have_their_closed_forms(tmp_path):
    ours = monitor(2)
    fit(Quadratic(), [ours], tmp_path, max_steps=2)
    (entry,) = ours.history
    theta = torch.tensor([1.0, 2.0, 0.0, -2.0]) * (1 - 0.01 * SCALE)  # after the first step
    move = -0.01 * SCALE * theta
    slope = float((SCALE * theta) @ move) - 3 * 2 * 0.03
    curvature = float(SCALE @ move.square())
    assert entry["step"] == 1
    assert entry["step_change"] == pytest.approx(slope + curvature / 2, rel=1e-5)
    assert entry["step_curvature"] == pytest.approx(curvature, rel=1e-4)
    assert entry["lowest_multiple"] == pytest.approx(-slope / curvature, rel=1e-4)
    assert entry["critical_multiple"] == pytest.approx(-2 * slope / curvature, rel=1e-4)
    assert entry["critical_lr"] == pytest.approx(0.01 * -2 * slope / curvature, rel=1e-4)
    lower, upper = entry["critical_multiple_lower"], entry["critical_multiple_upper"]
    assert lower < entry["critical_multiple"] < upper < 1.5 * lower
    for name in ("step_change", "step_curvature", "lowest_multiple", "critical_multiple"):
        assert 0 < entry[f"{name}_error"] < 1e-4 * abs(entry[name]) + 1e-5
    assert entry["step_forwards"] == 7
    assert ours._last_step._before == {}
    text = str(ours.last_report)
    assert text.startswith("The last step changed the loss by -3.31 ± ")
    assert "The largest multiple that lowers the loss is 21.4 ± " in text


@pytest.mark.slow
def test_its_lowest_multiple_is_the_best_one_where_the_step_is_not_far_from_it(tmp_path):
    class Long(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.15)

    ours, edge = monitor(), EdgeMonitor(1, max_overhead=None, on_error="raise")
    fit_regression(Long(), [ours, edge], tmp_path, precision="64-true", max_steps=12)
    pairs = [
        (forward["lowest_multiple"], exact["best_step_multiple"])
        for forward, exact in zip(ours.history, edge.history, strict=True)
        if 0.5 < exact["best_step_multiple"] < 2
    ]
    assert len(pairs) >= 3
    for lowest, best in pairs:
        assert lowest == pytest.approx(best, rel=0.1)


@pytest.mark.parametrize("mode", ["eval", pytest.param("train", marks=pytest.mark.slow)])
def test_it_agrees_with_the_derivatives_of_the_edge_monitor(tmp_path, mode):
    """In float64 and with small steps, of which the third order is small."""
    ours = monitor(2, mode=mode)
    edge = EdgeMonitor(2, mode=mode, max_overhead=None, on_error="raise")

    class Smooth(Regression):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    fit_regression(Smooth(), [ours, edge], tmp_path, precision="64-true")
    assert len(ours.history) == len(edge.history) == 4
    for forward, exact in zip(ours.history, edge.history, strict=True):
        assert forward["step_change"] == pytest.approx(exact["step_gain"], rel=1e-3)
    step = edge.last_report.step
    assert ours.last_report.curvature.value == pytest.approx(step.curvature, rel=1e-3)
    assert ours.last_report.curvature.error < 0.05 * step.curvature


def test_every_quantity_of_the_list_is_logged(tmp_path):
    ours = monitor()
    trainer = fit(Quadratic(), [ours], tmp_path)
    mine = [q for q in quantities.ALL if quantities.STEP in q.monitors]
    scalars = {q.tag for q in mine if isinstance(q, quantities.Scalar)}
    logged = {tag for tag in trainer.callback_metrics if tag.startswith("geometry/")}
    assert scalars == logged


def test_the_line_is_in_the_file_and_the_run_can_be_read(tmp_path):
    logger = lightning.pytorch.loggers.TensorBoardLogger(tmp_path, name="", version="")
    fit(Quadratic(), [monitor()], tmp_path, max_steps=2, logger=logger)
    with open(tmp_path / "geometry.jsonl", "rb") as file:
        records = [record for _, record in Reader(file)]
    assert [record.tag for record in records] == ["geometry/step_line"] * 2
    line = records[-1].whole
    assert line["line_multiples"][:5] == [0, 1, 1.5, 2, 16]
    assert line["line_changes"][0] == 0
    assert line["line_changes"][1] == pytest.approx(records[-1].scalars["geometry/step_change"])
    (run,) = load([tmp_path])
    assert "geometry/critical_multiple" in run.scalars
    assert not run.notes


@pytest.mark.parametrize(
    ("precision", "mode"),
    [
        ("32-true", "train"),
        ("bf16-true", "eval"),
        pytest.param("bf16-mixed", "eval", marks=pytest.mark.slow),
        pytest.param("bf16-mixed", "train", marks=pytest.mark.slow),
    ],
)
def test_no_bit_of_a_training_with_every_kind_of_state_is_changed(tmp_path, precision, mode):
    ours = monitor(2, mode=mode)
    options = {"precision": precision, "steps": 6}
    with_monitor = trace(*train(tmp_path, [ours], **options))
    assert_same(trace(*train(tmp_path, [], **options)), with_monitor)
    assert len(ours.history) == 3
    if precision == "bf16-true":
        assert all(float(c) == round(float(c)) for c in ours.last_report.losses)


@pytest.mark.slow
def test_accumulation_clipping_and_several_batches_change_no_bit(tmp_path):
    ours = monitor(2, num_batches=3, offload="cpu")
    options = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1, "steps": 6}
    with_monitor = trace(*train(tmp_path, [ours], **options))
    assert_same(trace(*train(tmp_path, [], **options)), with_monitor)
    assert len(ours.history) == 3
    # Three batches tell what their choice leaves open.
    assert ours.history[0]["step_change_error"] > 10 * ours.last_report.roughness


@pytest.mark.slow
def test_resuming_in_the_middle_changes_no_bit_and_continues_the_history(tmp_path):
    for name, monitors in (("with", [monitor()]), ("without", [])):
        trainer, _, _ = train(tmp_path, monitors, steps=10)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    resumed = monitor()
    result = train(tmp_path, [resumed], steps=12, ckpt_path=tmp_path / "with.ckpt")
    plain = train(tmp_path, [], steps=12, ckpt_path=tmp_path / "without.ckpt")
    assert_same(trace(*plain), trace(*result))
    assert [entry["step"] for entry in resumed.history] == list(range(12))


def test_a_measurement_is_that_many_forward_passes_and_no_backward(tmp_path):
    counts = {"forward": 0, "graph": 0}

    class Counted(Quadratic):
        def training_step(self, batch, batch_idx):
            counts["forward"] += 1
            counts["graph"] += torch.is_grad_enabled()
            return super().training_step(batch, batch_idx)

    fit(Counted(), [monitor(max_forwards=5)], tmp_path, max_steps=3)
    assert counts == {"forward": 3 + 3 * 5, "graph": 3}


def test_several_optimizers_by_hand_are_one_step(tmp_path):
    def loss(module, batch):
        return Quadratic.training_step(module, batch, 0)

    by_hand, automatic = monitor(probe_loss=loss), monitor()
    fit(TwoOptimizers(), [by_hand], tmp_path, max_steps=2)
    fit(Quadratic(), [automatic], tmp_path, max_steps=1)
    first = automatic.history[0]["critical_multiple"]
    assert by_hand.history[0]["critical_multiple"] == pytest.approx(first, rel=1e-5)
    refused = StepMonitor(1, max_overhead=None)
    with pytest.warns(UserWarning, match="Define TwoOptimizers.probe_loss"):
        fit(TwoOptimizers(), [refused], tmp_path, max_steps=2)
    assert refused.history == []


def test_a_step_that_changes_nothing_is_not_measured_but_the_next_one_is(tmp_path):
    class WarmUp(Quadratic):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 1))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    ours = monitor(4)
    ours.should_measure = lambda trainer: trainer.global_step == 0
    fit(WarmUp(), [ours], tmp_path, max_steps=4)
    assert [entry["step"] for entry in ours.history] == [2]


def test_a_loss_that_diverges_has_an_upper_end(tmp_path):
    class Cliff(Quadratic):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if float(self.phi.detach().max()) > -0.2 else loss * torch.nan

    ours = monitor()
    fit(Cliff(), [ours], tmp_path)  # phi moves by -0.03 a step
    (entry,) = ours.history
    assert entry["critical_multiple_lower"] <= 0.2 / 0.03 <= entry["critical_multiple_upper"] < 12
    assert math.isfinite(entry["step_change"])


def test_faults_leave_the_training_as_it_is(tmp_path):
    def raising(loss, batch):
        raise RuntimeError("no loss here")

    def starving(loss, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    fit_regression(without := Regression(), [], tmp_path)
    for fault, said in ((raising, "no loss here"), (starving, "out of memory")):
        ours = StepMonitor(1, max_overhead=None)
        seen = []

        def at_third_pass(module, loss, batch, fault=fault, seen=seen):
            seen.append(None)
            return fault(loss, batch) if len(seen) == 3 else loss

        module = Regression(at_third_pass)
        with pytest.warns(UserWarning, match=said):
            fit_regression(module, [ours], tmp_path)
        assert torch.equal(weights(module), weights(without))
        assert [entry["step"] for entry in ours.history] == list(range(1, 8))


def test_a_loss_of_nan_at_the_start_is_an_error_of_that_step(tmp_path):
    ours = StepMonitor(1, max_overhead=None)
    module = Regression(at_probes({0}, lambda loss, batch: loss * torch.nan))
    with pytest.warns(UserWarning, match="expected a finite loss at the start of the step"):
        fit_regression(module, [ours], tmp_path)
    assert [entry["step"] for entry in ours.history] == list(range(1, 8))


def test_frozen_parameters_that_are_many_are_watched(tmp_path, monkeypatch):
    class Adapted(Regression):
        def __init__(self, changes):
            super().__init__()
            self.base = nn.Linear(100, 100).requires_grad_(False)
            self.changes = changes

        def training_step(self, batch, batch_idx):
            if self.changes:
                self.base.weight.data.mul_(0.9)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    monkeypatch.delattr(Regression, "probe_loss")  # training_step is measured
    fit_regression(Adapted(changes=False), [ours := monitor()], tmp_path)
    assert len(ours.history) == 8
    with pytest.raises(RestoreError, match="leaves frozen parameters as they are"):
        fit_regression(Adapted(changes=True), [monitor()], tmp_path)


class Changing(Regression):
    """Its ``training_step`` also changes parameters, as ``change(module)`` says."""

    def __init__(self, change):
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.change = change

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.change(self)
        distance = self.net(batch[0]) - self.teacher(batch[0])
        return super().training_step(batch, batch_idx) + distance.square().mean()


def _average_in_place(module):
    for theirs, ours in zip(module.teacher.parameters(), module.net.parameters(), strict=True):
        theirs.lerp_(ours, 0.1)


def _average_elsewhere(module):
    for theirs, ours in zip(module.teacher.parameters(), module.net.parameters(), strict=True):
        theirs.data = 0.9 * theirs.data + 0.1 * ours.data


def _clip_in_place(module):
    for p in module.net.parameters():
        p.clamp_(-0.3, 0.3)


def _clip_elsewhere(module):
    for p in module.net.parameters():
        p.data = p.data.clamp(-0.3, 0.3)


def _clip_past_autograd(module):
    for p in module.net.parameters():
        p.data.clamp_(-0.3, 0.3)


def _shrink_past_autograd(module):
    for p in module.net.parameters():
        p.data.mul_(0.99)


@pytest.mark.parametrize("change", [_average_in_place, _average_elsewhere])
def test_a_teacher_that_training_step_moves_is_put_back(tmp_path, monkeypatch, change):
    """Also where the optimizer has been given its parameters, too."""
    monkeypatch.delattr(Regression, "probe_loss")  # training_step is measured
    with_monitor, without, ours = Changing(change), Changing(change), monitor()
    fit_regression(without, [], tmp_path)
    fit_regression(with_monitor, [ours], tmp_path)
    assert torch.equal(weights(with_monitor), weights(without))
    assert len(ours.history) == 8


@pytest.mark.parametrize(
    "change", [_clip_in_place, _clip_elsewhere, _clip_past_autograd, _shrink_past_autograd]
)
def test_a_loss_that_changes_trained_parameters_is_refused_and_they_are_put_back(
    tmp_path, monkeypatch, change
):
    monkeypatch.delattr(Regression, "probe_loss")
    with_monitor, without = Changing(change), Changing(change)
    ours = StepMonitor(1, max_overhead=None)
    fit_regression(without, [], tmp_path, max_steps=1)
    with pytest.warns(UserWarning, match="expected a loss that leaves parameters as they are"):
        fit_regression(with_monitor, [ours], tmp_path, max_steps=1)
    assert torch.equal(weights(with_monitor), weights(without))
    assert ours.history == []


def test_a_loss_that_changes_parameters_at_the_end_of_the_step_alone_ends_the_training(tmp_path):
    """Nothing else could: its own bits are those that are lost."""

    class Rare(Quadratic):
        evaluations = 0

        def training_step(self, batch, batch_idx):
            type(self).evaluations += 1
            if type(self).evaluations == 4:  # after training, 0 and 2
                self.theta.data.add_(1)
            return super().training_step(batch, batch_idx)

    with pytest.raises(RestoreError, match="leaves parameters as they are"):
        fit(Rare(), [StepMonitor(1, max_overhead=None)], tmp_path, max_steps=1)


def test_a_loss_that_takes_gradients_on_its_way_is_measured(tmp_path):
    """As a gradient penalty, or a differential equation."""

    class Penalised(Quadratic):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            (gradient,) = torch.autograd.grad(loss, self.theta, create_graph=True)
            return loss + 0.0 * gradient.sum()

    plain, ours = monitor(), monitor()
    fit(Quadratic(), [plain], tmp_path)
    fit(Penalised(), [ours], tmp_path)
    assert len(ours.history) == len(plain.history) > 0
    assert ours.history[-1]["step_change"] == plain.history[-1]["step_change"]


def test_a_loss_in_sixteen_bits_is_said_to_hide_the_step(tmp_path):
    class Coarse(Quadratic):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).bfloat16()

    with pytest.warns(UserWarning, match="is lost in the rounding of the loss"):
        fit(Coarse(lr=1e-5), [monitor()], tmp_path)


def test_beside_the_edge_monitor_no_tag_is_logged_twice(tmp_path):
    ours, edge = monitor(), EdgeMonitor(1, on_error="raise")
    fit(Quadratic(), [ours, edge], tmp_path)
    common = ours.history[0].keys() & edge.history[0].keys()
    assert common == {"step", "tensor_names", "per_tensor"}


def test_its_state_survives_a_checkpoint(tmp_path):
    ours = monitor()
    trainer = fit(Quadratic(), [ours], tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = monitor()
    second.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert second.history == ours.history
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert "StepMonitor{'mode': 'eval'}" in state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_forwards": 3}, "StepMonitor: expected `max_forwards` >= 4, got 3"),
        ({"num_batches": 0}, "StepMonitor: expected `num_batches` >= 1, got 0"),
        ({"mode": "test"}, "StepMonitor: expected `mode` to be one of 'eval', 'train'"),
        ({"offload": "disk"}, "StepMonitor: expected `offload` to be one of 'cpu' or None"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StepMonitor(**options)


class Net(nn.Module):
    """Of a class of its own: torch.compile does not enter torch's containers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.tanh(self.net(x))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_compiled_training_is_measured_as_it_is_and_changes_no_bit(tmp_path, mode):
    """For passes without gradients it is compiled once more."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(torch.is_grad_enabled())
        return aot_eager(graph, inputs)

    class Compiled(Regression):
        def __init__(self):
            super().__init__()
            self.net = Net(self.net)
            self.net.compile(backend=backend)

    runs = []
    for monitors in ([monitor(mode=mode)], []):
        torch.compiler.reset()
        compiled.clear()
        fit_regression(module := Compiled(), monitors, tmp_path, max_steps=4)
        runs.append((weights(module), list(compiled)))
    (with_monitor, graphs), (without, needed) = runs
    assert torch.equal(with_monitor, without)
    assert needed == [True]
    assert graphs == [True, False]
