"""What EdgeMonitor logs, of which step, and what it does where there is no edge."""

import copy
import math

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from support.quadratic_module import IGNORED_WARNINGS, Quadratic, TwoOptimizers, fit

from lightning_linf import measure_edge, quantities
from lightning_linf.callbacks import EdgeMonitor, LinfSmoothnessMonitor, SwapOptimizer
from lightning_linf.optim import Signum
from lightning_linf.swap import Geometry

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)
SCALE = torch.tensor([1.0, 1.0, 1.0, 10.0])


class With(Quadratic):
    """The quadratic with an optimizer of one's choice."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


def test_edge_and_the_step_have_their_closed_forms(tmp_path):
    monitor = EdgeMonitor(every_n_steps=2, on_error="raise")
    fit(Quadratic(), [monitor], tmp_path, max_steps=2)
    (entry,) = monitor.history
    assert entry["step"] == 1
    assert entry["edge"] == pytest.approx(0.01 * 10 / 2, rel=1e-5)
    assert entry["largest_stable_lr"] == pytest.approx(0.2, rel=1e-5)
    assert 0 <= entry["edge_relative_error"] < 0.01
    theta = torch.tensor([1.0, 2.0, 0.0, -2.0]) * (1 - 0.01 * SCALE)  # after the first step
    move = -0.01 * SCALE * theta
    of_theta = float(((theta + move).square() - theta.square()) @ SCALE) / 2
    of_phi = 3 * 2 * -0.03
    # A quadratic: the second order is all that there is.
    assert entry["step_gain"] == pytest.approx(of_theta + of_phi, rel=1e-4)
    parts = entry["per_tensor"]["step_gain"]
    torch.testing.assert_close(parts, torch.tensor([of_theta, of_phi]), rtol=1e-4, atol=0)
    slope, curvature = float((SCALE * theta) @ move) + of_phi, float(SCALE @ move.square())
    assert entry["best_step_multiple"] == pytest.approx(-slope / curvature, rel=1e-4)
    multiples = entry["per_tensor"]["best_step_multiple"]
    assert multiples[0] == pytest.approx(float(-(SCALE * theta) @ move) / curvature, rel=1e-4)
    assert multiples[1] == math.inf  # linear
    assert entry["tensor_names"] == ["theta", "phi"]
    assert monitor.last_report.num_hvps <= 7  # the operator has 6 dimensions, and the step 1
    assert monitor._last_step._before == {}


def test_where_the_module_leaves_out_the_step_there_is_an_edge_and_no_rows(tmp_path):
    class Idle(Quadratic):
        def optimizer_step(self, epoch, batch_idx, optimizer, closure):
            closure()

    logger = TensorBoardLogger(tmp_path, name="", version="")
    monitor = EdgeMonitor(1, on_error="raise")
    fit(Idle(), [monitor], tmp_path, logger=logger)  # the event file, too
    (entry,) = monitor.history
    assert "edge" in entry
    assert entry["per_tensor"] == {}


def test_every_quantity_of_the_list_is_logged(tmp_path):
    monitor = EdgeMonitor(1, on_error="raise")
    trainer = fit(Quadratic(), [monitor], tmp_path)
    mine = [q for q in quantities.ALL if quantities.EDGE_OF_STABILITY in q.monitors]
    assert {q.tag for q in mine} == {
        tag for tag in trainer.callback_metrics if tag.startswith("geometry/")
    }
    columns = {q.name for q in mine if isinstance(q, quantities.Column)}
    assert set(monitor.history[0]["per_tensor"]) == columns


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.5, 0.9)),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
)
def test_it_is_measure_edge_with_the_state_after_the_step(tmp_path, make):
    kept = {}

    class Keep(EdgeMonitor):
        def measure(self, trainer, pl_module):
            super().measure(trainer, pl_module)
            (optimizer,) = trainer.optimizers
            kept["report"] = measure_edge(
                pl_module,
                [kept_batch.batch() for kept_batch in self._batches],
                optimizer,
                loss=lambda module, batch: module.training_step(batch, 0),
            )

    monitor = Keep(3, on_error="raise")
    fit(With(make), [monitor], tmp_path, max_steps=3)
    assert monitor.last_report.edge == pytest.approx(kept["report"].edge, rel=1e-6)
    assert monitor.last_report.learning_rate == 0.1


def test_the_learning_rate_is_that_of_the_next_step(tmp_path):
    class Scheduled(Quadratic):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 + step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    monitor = EdgeMonitor(1, max_overhead=None, on_error="raise")
    fit(Scheduled(), [monitor], tmp_path, max_steps=3)
    edges = [entry["edge"] for entry in monitor.history]
    assert edges == pytest.approx([0.1, 0.15, 0.2], rel=1e-5)
    rates = [entry["largest_stable_lr"] for entry in monitor.history]
    assert rates == pytest.approx([0.2, 0.2, 0.2], rel=1e-5)


def test_several_optimizers_count_as_one(tmp_path):
    def loss(module, batch):
        return Quadratic.training_step(module, batch, 0)

    monitor = EdgeMonitor(1, on_error="raise", probe_loss=loss)
    fit(TwoOptimizers(), [monitor], tmp_path, max_steps=2)
    assert monitor.last_report.edge == pytest.approx(0.05, rel=1e-5)
    assert monitor.last_report.settings["optimizer"] == "SGD, SGD"


def test_of_an_optimizer_without_an_edge_the_steps_alone_are_measured(tmp_path):
    monitor = EdgeMonitor(1, max_overhead=None, on_error="raise")
    with pytest.warns(UserWarning, match="steps alone. .* got Signum") as caught:
        fit(With(lambda p: Signum(p, lr=0.01)), [monitor], tmp_path, max_steps=3)
    assert sum("got Signum" in str(warning.message) for warning in caught) == 1
    assert len(monitor.history) == 3
    assert "edge" not in monitor.history[0]
    theta = torch.tensor([1.0, 2.0, 0.0, -2.0])
    moved = theta - 0.01 * theta.sign()
    change = float((moved.square() - theta.square()) @ SCALE) / 2 - 3 * 0.02
    assert monitor.history[0]["step_gain"] == pytest.approx(change, rel=1e-4)
    assert monitor.last_report.num_hvps == 1
    assert math.isnan(monitor.last_report.largest_stable_lr)
    assert str(monitor.last_report).startswith("The last step changed the loss by")


def test_the_edge_is_that_of_the_optimizer_swapped_in(tmp_path):
    monitor = EdgeMonitor(1, max_overhead=None, on_error="raise")
    swap = SwapOptimizer(2, Geometry("sgd"))
    fit(With(lambda p: torch.optim.Adam(p, lr=0.01)), [swap, monitor], tmp_path, max_steps=4)
    assert len(monitor.history) == 4
    assert monitor.last_report.settings["optimizer"] == "SGD"


def test_beside_the_smoothness_monitor_no_tag_is_logged_twice(tmp_path):
    smoothness, edge = LinfSmoothnessMonitor(1, on_error="raise"), EdgeMonitor(1, on_error="raise")
    fit(Quadratic(), [smoothness, edge], tmp_path)
    common = smoothness.history[0].keys() & edge.history[0].keys()
    assert common == {"step", "tensor_names", "per_tensor"}


def test_a_training_that_resumes_keeps_the_history(tmp_path):
    first = EdgeMonitor(1, on_error="raise")
    trainer = fit(Quadratic(), [first], tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = EdgeMonitor(1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [entry["edge"] for entry in second.history] == [e["edge"] for e in first.history]
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert "EdgeMonitor{'mode': 'eval'}" in state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_hvps": 0}, "EdgeMonitor: expected `max_hvps` >= 1, got 0"),
        ({"num_batches": 0}, "EdgeMonitor: expected `num_batches` >= 1, got 0"),
        ({"max_overhead": 0}, "EdgeMonitor: expected `max_overhead` > 0 or None, got 0"),
        ({"mode": "test"}, "EdgeMonitor: expected `mode` to be one of 'eval', 'train'"),
        ({"every_n_steps": 0}, "EdgeMonitor: expected `every_n_steps` >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeMonitor(**options)
