"""The edge against dense eigenvalues and diverging steps; the last step against the loss itself."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from support.landscapes import Quadratic, dense, normal, random_net, value_of
from torch import nn

from lightning_linf import Rotation, Scaling, measure_edge
from lightning_linf.errors import ProbeError
from lightning_linf.functional import stability_threshold
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.optim.linear_step import linear_steps
from lightning_linf.report import EdgeReport, StepReport


def two_groups(parameters):
    """Groups that differ in all that SGD has."""
    parameters = list(parameters)
    return [
        {"params": parameters[:2], "lr": 0.3, "momentum": 0.9, "nesterov": True},
        {"params": parameters[2:3], "lr": 0.05, "momentum": 0.5, "dampening": 0.3},
        {"params": parameters[3:], "weight_decay": 0.4},
    ]


def scaled_and_rotated(parameters):
    factors = torch.linspace(0.5, 2.0, sum(p.numel() for p in parameters))
    return Scaling(factors) @ Rotation(seed=0)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3),
    "two groups": lambda p: torch.optim.SGD(two_groups(p), lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam with weight decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=3.0),
    "BlockwiseAdam": lambda p: BlockwiseAdam(p, lr=0.01),
    "AdaSGD": lambda p: AdaSGD(p, lr=0.01),
    "rotated Adam": lambda p: Reparameterized(
        p, lambda q: torch.optim.Adam(q, lr=0.01, weight_decay=0.3), scaled_and_rotated(p)
    ),
}


def train(module, batch, loss, optimizer, num_steps=5):
    """Make steps; give what the last one has added to each parameter."""
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(module, batch).backward()
        before = [p.detach().clone() for p in module.parameters()]
        optimizer.step()
    return [p.detach() - old for p, old in zip(module.parameters(), before, strict=True)]


def joined(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_edge_is_the_dense_eigenvalue(kind):
    module, batch, loss, *_ = random_net(3)
    parameters = list(module.parameters())
    optimizer = OPTIMIZERS[kind](parameters)
    train(module, batch, loss, optimizer)
    report = measure_edge(module, [batch], optimizer, loss=loss, max_hvps=40)

    _, hessian = dense(module, batch, loss)
    steps = [linear_steps([optimizer])[p] for p in parameters]
    roots = joined([(step.rates / step.threshold).sqrt().expand(p.shape)
                    for step, p in zip(steps, parameters, strict=True)]).double()  # fmt: skip
    decay = joined([torch.full_like(p, step.weight_decay)
                    for step, p in zip(steps, parameters, strict=True)])  # fmt: skip
    if isinstance(optimizer, Reparameterized):
        map_ = optimizer.coordinates(parameters)
        columns = torch.stack([map_.apply(unit) for unit in torch.eye(len(roots)).double()], dim=1)
        hessian = columns.T @ hessian @ columns
    exact = torch.linalg.eigvalsh(roots[:, None] * (hessian + decay.diag()) * roots)[-1]
    assert report.edge <= float(exact) * (1 + 1e-9)
    assert float(exact) <= report.edge_upper * (1 + 1e-9)
    assert report.edge_upper <= 1.0101 * report.edge
    assert report.edge_relative_error == pytest.approx(report.edge_upper / report.edge - 1)
    lr = optimizer.param_groups[0]["lr"]
    assert report.learning_rate == lr
    assert report.largest_stable_lr == pytest.approx(lr / report.edge)
    assert report.num_hvps <= 40


@pytest.mark.parametrize("kind", ["SGD", "momentum", "two groups"])
def test_steps_converge_just_below_an_edge_of_1_and_diverge_just_above(kind):
    # Nothing of the theory is in this test: a quadratic, torch's own steps, and whether they grow.
    half = normal(42, 60) / 60**0.5
    module = Quadratic(half @ half.T + 0.05 * torch.eye(42).double())
    optimizer = OPTIMIZERS[kind](list(module.parameters()))
    edge = measure_edge(module, [torch.zeros(1)], optimizer, loss=value_of, max_hvps=42).edge
    rates = [group["lr"] for group in optimizer.param_groups]
    for factor, grows in ((0.98, False), (1.02, True)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor / edge
        optimizer.state.clear()
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(normal(*p.shape))
        start = float(module.theta().detach().norm())
        train(module, torch.zeros(1), value_of, optimizer, 3_000)
        assert (float(module.theta().detach().norm()) > 100 * start) == grows
        assert grows or float(module.theta().detach().norm()) < 1e-3 * start


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_frozen_adam_with_decay_turns_unstable_at_an_edge_of_1(beta1):
    half = normal(42, 60)
    module = Quadratic(half @ half.T / 60, slope=normal(42))
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.1, betas=(beta1, 0.99), weight_decay=1.0)
    train(module, torch.zeros(1), value_of, optimizer, 400)  # bias corrections are over
    report = measure_edge(module, [torch.zeros(1)], optimizer, loss=value_of, max_hvps=42)
    state = [optimizer.state[p]["exp_avg_sq"] / (1 - 0.99**400) for p in parameters]
    p = joined([v.sqrt() + 1e-8 for v in state])
    # Scaling P scales the edge; with decay and lr as they are, the threshold stays.
    for factor, is_stable in ((0.99, True), (1.01, False)):
        inverse = (factor / report.edge / p).diag()
        keep, eye = 1 - 0.1 * 1.0, torch.eye(42).double()
        to_mean = (1 - beta1) * module.hessian
        step = torch.cat([
            torch.cat([keep * eye - 0.1 * inverse @ to_mean, -0.1 * beta1 * inverse], dim=1),
            torch.cat([to_mean, beta1 * eye], dim=1),
        ])  # fmt: skip
        radius = float(torch.linalg.eigvals(step).abs().max())
        assert (radius < 1) == is_stable


def test_negative_curvature_is_stable_at_any_rate():
    module = Quadratic(-torch.eye(42).double())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    report = measure_edge(module, [torch.zeros(1)], optimizer, loss=value_of)
    assert report.edge == pytest.approx(-0.05)
    assert report.largest_stable_lr == report.edge_relative_error == math.inf


def test_a_learning_rate_of_zero_tells_nothing():
    module = Quadratic(torch.eye(42).double())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    report = measure_edge(module, [torch.zeros(1)], optimizer, loss=value_of)
    assert report.edge == report.edge_upper == 0
    assert math.isnan(report.largest_stable_lr)


def test_parameters_of_no_optimizer_are_held_constant():
    module, batch, loss, _, hessian = random_net(3)
    optimizer = torch.optim.SGD(list(module.parameters())[:1], lr=0.2)
    report = measure_edge(module, [batch], optimizer, loss=loss, max_hvps=40)
    size = next(module.parameters()).numel()
    exact = float(torch.linalg.eigvalsh(hessian[:size, :size])[-1])
    assert report.num_params == size
    assert report.edge == pytest.approx(0.1 * exact, rel=0.01)


@pytest.mark.parametrize("kind", ["momentum", "Adam", "rotated Adam"])
def test_gain_is_the_change_of_the_loss_up_to_the_third_order(kind):
    errors = []
    for size in (1.0, 0.5, 0.25):
        module, batch, loss, *_ = random_net(3)
        optimizer = OPTIMIZERS[kind](list(module.parameters()))
        train(module, batch, loss, optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= size / 10
        before = float(loss(module, batch).detach())
        moves = train(module, batch, loss, optimizer, 1)
        change = float(loss(module, batch).detach()) - before
        report = measure_edge(module, [batch], optimizer, loss=loss, last_step=moves)
        errors.append(abs(report.step.gain - change))
        assert report.loss == pytest.approx(before + change)
        assert errors[-1] < 0.05 * abs(change)
    # Halving a step divides its third-order error by 8.
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.15)


def test_parts_of_tensors_are_those_of_the_dense_derivatives_and_add_up():
    module, batch, loss, *_ = random_net(3)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    moves = train(module, batch, loss, optimizer)
    report = measure_edge(module, [batch], optimizer, loss=loss, last_step=moves)
    gradient, hessian = dense(module, batch, loss)
    step = joined(moves)
    sizes = [move.numel() for move in moves]
    slopes = [float(part.sum()) for part in (gradient * step).split(sizes)]
    curvatures = [float(part.sum()) for part in (step * (hessian @ step)).split(sizes)]
    assert list(report.per_tensor) == [name for name, _ in module.named_parameters()]
    for part, slope, curvature in zip(report.per_tensor.values(), slopes, curvatures, strict=True):
        assert (part.slope, part.curvature) == pytest.approx((slope, curvature), abs=1e-12)
    assert report.step.gain == pytest.approx(sum(p.gain for p in report.per_tensor.values()))


def test_best_multiple_is_where_a_quadratic_is_lowest_along_the_step():
    half = normal(42, 42)
    module = Quadratic(half @ half.T, slope=normal(42))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.5)
    moves = train(module, torch.zeros(1), value_of, optimizer)
    report = measure_edge(module, [torch.zeros(1)], optimizer, loss=value_of, last_step=moves)
    after = [p.detach().clone() for p in module.parameters()]

    def loss_at(multiple):
        with torch.no_grad():
            for p, end, move in zip(module.parameters(), after, moves, strict=True):
                p.copy_(end + (multiple - 1) * move)
        return float(module().detach())

    best = report.step.best_multiple
    assert loss_at(best) < min(loss_at(best * 0.99), loss_at(best * 1.01))
    assert loss_at(1.0) - loss_at(0.0) == pytest.approx(report.step.gain)


@pytest.mark.parametrize(
    ("slope", "curvature", "best"),
    [(0.0, 2.0, 1.0), (1.0, 2.0, 0.5), (3.0, 2.0, -0.5), (1.0, -2.0, math.inf)],
)
def test_best_multiples_of_known_parabolas(slope, curvature, best):
    step = StepReport(slope, curvature)
    assert step.best_multiple == best
    # No higher than before the step, just where the best multiple is above a half.
    assert (step.gain < 0) == (curvature > 0 and best > 0.5)
    assert math.isnan(StepReport(0.0, 0.0).best_multiple)


def test_module_and_optimizer_are_as_before_and_the_report_is_repeatable():
    module, batch, loss, *_ = random_net(3)
    optimizer = OPTIMIZERS["rotated Adam"](list(module.parameters()))
    moves = train(module, batch, loss, optimizer)
    weights, state = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    counts = []
    first, second = (
        measure_edge(
            module, [batch], optimizer, loss=loss, last_step=moves, seed=1, on_hvps=counts.append
        )
        for _ in range(2)
    )
    torch.testing.assert_close(module.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    assert first.edge == second.edge
    assert sum(counts) == first.num_hvps + second.num_hvps
    assert first.edge != measure_edge(module, [batch], optimizer, loss=loss, seed=2).edge


def test_a_mean_over_batches_is_that_of_all_samples():
    module, (x, y), loss, *_ = random_net(3)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    moves = train(module, (x, y), loss, optimizer)
    options = {"loss": loss, "last_step": moves, "max_hvps": 40}
    whole = measure_edge(module, [(x, y)], optimizer, **options)
    parts = measure_edge(module, [(x[:4], y[:4]), (x[4:], y[4:])], optimizer, **options)
    assert parts.edge == pytest.approx(whole.edge, rel=1e-6)
    assert parts.step.gain == pytest.approx(whole.step.gain, rel=1e-9)


def test_report_reads_well_and_is_json():
    report = EdgeReport(
        num_params=3,
        loss=1.0,
        edge=0.5,
        edge_upper=0.505,
        learning_rate=0.1,
        step=StepReport(-0.1, -0.2),
        per_tensor={},
        settings={"seed": 0},
        num_hvps=9,
        seconds=0.1,
    )
    assert "edge 0.5 to 0.505, below 1" in str(report)
    assert "Learning rate 0.1; at 0.2," in str(report)
    assert "inf times this step" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["largest_stable_lr"] == 0.2
    assert data["best_step_multiple"] == "Infinity"
    assert "above 1" in str(replace(report, edge=1.5, edge_upper=1.6))
    assert "around 1" in str(replace(report, edge=0.9, edge_upper=1.1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_hvps": 0}, ValueError, "measure_edge: expected `max_hvps` >= 1, got 0"),
        ({"on_hvps": 1}, ValueError, "measure_edge: expected `on_hvps` to be a function"),
        ({"last_step": [torch.zeros(3)]}, ValueError, "expected `last_step` of one tensor for"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    module = Quadratic(torch.eye(42).double())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        measure_edge(module, [torch.zeros(1)], optimizer, loss=value_of, **options)


def test_what_is_no_optimizer_is_refused():
    module = Quadratic(torch.eye(42).double())
    with pytest.raises(ValueError, match=r"measure_edge: expected `optimizer` to be .* got 'adam'"):
        measure_edge(module, [torch.zeros(1)], "adam", loss=value_of)


@pytest.mark.parametrize(("make", "error"), [(Signum, ValueError), (torch.optim.Adam, ProbeError)])
def test_an_optimizer_without_an_edge_is_refused(make, error):
    module = Quadratic(torch.eye(42).double())
    with pytest.raises(error, match="measure_edge: expected"):
        measure_edge(module, [torch.zeros(1)], make(module.parameters()), loss=value_of)


def test_a_single_precision_edge_is_that_of_double_precision():
    module, batch, loss, *_ = random_net(3)
    edges = {}
    for dtype in (torch.float64, torch.float32):
        copied, inputs = copy.deepcopy(module).to(dtype), tuple(t.to(dtype) for t in batch)
        optimizer = torch.optim.Adam(copied.parameters(), lr=0.01)
        train(copied, inputs, loss, optimizer)
        edges[dtype] = measure_edge(copied, [inputs], optimizer, loss=loss, max_hvps=40).edge
    assert edges[torch.float32] == pytest.approx(edges[torch.float64], rel=1e-3)


def test_threshold_of_the_report_is_adams():
    module = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, eps=0.0)
    loss = lambda m, x: 3.0 * m(x).square().mean()  # noqa: E731  # curvature 6
    x = torch.ones(1, 1).double()
    train(module, x, loss, optimizer, 200)
    v = optimizer.state[module.weight]["exp_avg_sq"] / (1 - 0.999**200)
    expected = 0.1 / (1 - 0.9**200) * 6 / float(v.sqrt()) / stability_threshold(0.9, dampening=0.9)
    assert measure_edge(module, [x], optimizer, loss=loss).edge == pytest.approx(expected)
