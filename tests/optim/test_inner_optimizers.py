"""Every optimizer of torch runs in other coordinates, with what torch has around it."""

import copy

import pytest
import torch
from support.coordinates import (
    CLOSE,
    Dense,
    backward,
    dense,
    rotated_adam,
    train,
    two,
    weights,
)
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import lr_scheduler

from lightning_linf.optim import Reparameterized
from lightning_linf.reparam import (
    Rotation,
    Scaling,
)

OPTIMIZERS = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adadelta": {"lr": 0.5},
    "Adamax": {"lr": 0.01},
    "ASGD": {"lr": 0.01},
    "Rprop": {"lr": 0.001},
    "LBFGS": {"lr": 0.1, "max_iter": 4},
    "LBFGS by line search": {"max_iter": 5, "line_search_fn": "strong_wolfe"},
}
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


@pytest.mark.parametrize("reparameterization", [Rotation(seed=0), Dense()], ids=["rotation", "any"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, None) for name in OPTIMIZERS),
        *((name, "foreach") for name in OPTIMIZERS if "LBFGS" not in name),
        *((name, "fused") for name in FUSED),
    ],
)
def test_every_optimizer_of_torch_runs_as_on_dense_coordinates(name, how, reparameterization):
    module, other, loss = two()
    kind = getattr(torch.optim, name.split()[0])
    options = {**OPTIMIZERS[name], **({how: True} if how else {})}
    optimizer = Reparameterized(
        module.parameters(), lambda p: kind(p, **options), reparameterization
    )
    shapes = [p.shape for p in module.parameters()]
    matrix = dense(reparameterization.bind(shapes), len(weights(module)))
    inverse = torch.linalg.inv(matrix)

    phis = [nn.Parameter(torch.empty_like(p)) for p in other.parameters()]
    nn.utils.vector_to_parameters(inverse @ weights(other), phis)
    reference = kind(phis, **options)

    def closure():
        theta = matrix @ parameters_to_vector(phis).detach()
        nn.utils.vector_to_parameters(theta, other.parameters())
        value = backward(other, loss)
        gradient = matrix.T @ parameters_to_vector(p.grad for p in other.parameters())
        parts = gradient.split([phi.numel() for phi in phis])
        for phi, part in zip(phis, parts, strict=True):
            phi.grad = part.view_as(phi).clone()
        return value

    for _ in range(10):
        ours = optimizer.step(lambda: backward(module, loss))
        torch.testing.assert_close(ours, reference.step(closure), rtol=1e-8, atol=1e-10)
    theta = matrix @ parameters_to_vector(phis).detach()
    torch.testing.assert_close(weights(module), theta, rtol=1e-7, atol=1e-7)


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=20),  # and momentum
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5, threshold=0.1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[5]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_followed(name):
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    rotated = Reparameterized(
        other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), Rotation()
    )
    rates = []
    for each, optimizer in ((module, plain), (other, rotated)):
        scheduler = SCHEDULERS[name](optimizer)
        rates.append([])
        for _ in range(18):
            value = backward(each, loss)
            optimizer.step()
            scheduler.step(*([value.detach()] if name == "plateau" else []))
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_clipping_acts_on_gradients_of_the_weights():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.1)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=0.1), Rotation())
    for each, optimizer in ((module, plain), (other, rotated)):
        for _ in range(10):
            backward(each, loss)
            nn.utils.clip_grad_norm_(each.parameters(), 0.1)
            optimizer.step()
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    module, other, loss = two()
    expected = backward(module, loss)
    rotated_adam(module).step()
    with torch.no_grad():
        value = rotated_adam(other).step(lambda: backward(other, loss))
    assert torch.equal(value, expected)
    assert torch.equal(weights(other), weights(module))


def test_a_closure_that_fails_leaves_weights_and_state_alone():
    module, other, loss = two()
    optimizer = rotated_adam(module)

    def closure():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step(closure)
    assert torch.equal(weights(module), weights(other))
    expected = train(other, rotated_adam(other), loss, 3)
    assert torch.equal(train(module, optimizer, loss, 3), expected)


def test_loss_scaling_skips_infinite_gradients():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=0.01), Rotation())
    for each, optimizer in ((module, plain), (other, rotated)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(5):
            each.zero_grad()
            scaler.scale(loss(each)).backward()
            if step == 2:
                each[0].bias.grad[0] = torch.inf
            before = weights(each)
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before, weights(each)) == (step == 2)
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_hooks_of_step_and_state_run_once():
    module, _, loss = two()
    optimizer, calls = rotated_adam(module), []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append("before step"))
    optimizer.register_step_post_hook(lambda o, *_: calls.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before save"))
    optimizer.register_state_dict_post_hook(lambda o, s: calls.append("after save"))

    @optimizer.register_load_state_dict_pre_hook
    def forget(o, state_dict):
        calls.append("before load")
        state_dict["state"] = {}

    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after load"))
    train(module, optimizer, loss, 1)
    assert len(optimizer.state) == len(list(module.parameters()))
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert calls == [f"{a} {b}" for b in ("step", "save", "load") for a in ("before", "after")]
    assert not optimizer.state  # as the hook had it
    assert saved["state"]


def test_learning_rates_may_be_tensors_and_may_change():
    module, other, loss = two()
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    rate = torch.tensor(0.01, dtype=torch.float64)
    rotated = Reparameterized(other.parameters(), lambda p: torch.optim.SGD(p, lr=rate), Rotation())
    assert rotated.param_groups[0]["lr"] is rate
    train(module, plain, loss, 2)
    train(other, rotated, loss, 2)
    plain.param_groups[0]["lr"] = 0.02
    rate.fill_(0.02)
    train(module, plain, loss, 2)
    train(other, rotated, loss, 2)
    plain.param_groups[0].update(lr=0.03, weight_decay=0.1)
    rotated.param_groups[0].update(lr=0.03, weight_decay=0.1)
    torch.testing.assert_close(train(other, rotated, loss, 2), train(module, plain, loss, 2))


class Counting(torch.optim.SGD):
    """Keeps a hyperparameter of its own in its groups, and a state that is of no parameter."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        self.state["all"] = {"count": group["count"]}
        return super().step(closure)


def test_what_the_inner_optimizer_changes_in_groups_and_state_is_seen_and_saved():
    module, other, loss = two()

    def make(m):
        return Reparameterized(m.parameters(), lambda p: Counting(p, lr=0.01), Rotation())

    optimizer, fresh = make(module), make(other)
    train(module, optimizer, loss, 3)
    assert optimizer.param_groups[0]["count"] == optimizer.state["all"]["count"] == 3
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["count"] == fresh.inner.state["all"]["count"] == 3


class ScheduleFree(torch.optim.Optimizer):
    """SGD after Defazio et al., The Road Less Scheduled, arXiv:2405.15682, equations 1 to 3.

    In training mode the parameters are y, where gradients are taken; else x, the average.
    """

    def __init__(self, params, lr=0.05, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "num_steps": 0, "train_mode": True})

    @torch.no_grad()
    def eval(self):
        for group in self.param_groups:
            if group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - 1 / group["beta"])
            group["train_mode"] = False

    @torch.no_grad()
    def train(self):
        for group in self.param_groups:
            if not group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - group["beta"])
            group["train_mode"] = True

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"]
            beta, group["num_steps"] = group["beta"], group["num_steps"] + 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "z" not in self.state[p]:
                    self.state[p]["z"] = p.clone()
                z = self.state[p]["z"]
                x = p.lerp(z, 1 - 1 / beta)
                z.sub_(group["lr"] * p.grad)
                x.lerp_(z, 1 / group["num_steps"])
                p.copy_(z.lerp(x, beta))


@pytest.mark.parametrize("reparameterization", [Rotation(), Rotation("tensor"), Scaling(1.0)])
@pytest.mark.parametrize("clone", [lambda o: o, copy.deepcopy])
def test_schedule_free_optimizers_change_between_training_and_evaluation(reparameterization, clone):
    module, other, loss = two()
    plain = ScheduleFree(module.parameters())
    rotated = clone(Reparameterized(other.parameters(), ScheduleFree, reparameterization))
    if clone is copy.deepcopy:
        other = nn.ParameterList(rotated.param_groups[0]["params"])
        module = nn.ParameterList(module.parameters())
        target = torch.randn(len(weights(module)), dtype=torch.float64)

        def loss(m):
            return (parameters_to_vector(m.parameters()) - target).square().sum()

    for _ in range(5):
        averages = []
        for each, optimizer in ((module, plain), (other, rotated)):
            optimizer.train()
            trained = train(each, optimizer, loss, 3)
            optimizer.eval()
            optimizer.eval()  # nothing more
            averages.append(weights(each))
            assert not optimizer.param_groups[0]["train_mode"]
        torch.testing.assert_close(averages[1], averages[0], **CLOSE)
        assert (averages[1] - trained).abs().max() > 1e-3
    saved = copy.deepcopy(rotated.state_dict())
    rotated.load_state_dict(saved)
    for each, optimizer in ((module, plain), (other, rotated)):
        optimizer.train()
        train(each, optimizer, loss, 1)
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


def test_other_optimizers_have_no_modes():
    optimizer = rotated_adam(two()[0])
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")


def test_schedulefrees_own_optimizer_is_rotated():
    schedulefree = pytest.importorskip("schedulefree", reason="needs schedulefree")
    module, other, loss = two()
    plain = schedulefree.SGDScheduleFree(module.parameters(), lr=0.01)
    rotated = Reparameterized(
        other.parameters(), lambda p: schedulefree.SGDScheduleFree(p, lr=0.01), Rotation()
    )
    for each, optimizer in ((module, plain), (other, rotated)):
        for _ in range(3):
            optimizer.train()
            train(each, optimizer, loss, 5)
            optimizer.eval()
    torch.testing.assert_close(weights(other), weights(module), **CLOSE)


@pytest.mark.gpu
def test_fused_adam_on_cuda_equals_the_cpu_and_never_waits():
    module, other, loss = two()
    optimizer = rotated_adam(module, fused=True)
    other.cuda()
    on_gpu = rotated_adam(other, fused=True)
    for step in range(10):
        backward(module, loss)
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            q.grad = p.grad.cuda()
        optimizer.step()
        if step > 1:  # the first ones make states and compile nothing twice
            torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(weights(other).cpu(), weights(module), rtol=1e-8, atol=1e-8)


class BySetting(torch.optim.Optimizer):
    """SGD that puts new tensors where the parameters' were, as some implementations of SAM do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_an_optimizer_may_set_the_data_of_its_parameters():
    module, other, loss = two()
    rotated = Reparameterized(other.parameters(), lambda p: BySetting(p, 0.1), Rotation())
    expected = train(module, torch.optim.SGD(module.parameters(), lr=0.1), loss)
    torch.testing.assert_close(train(other, rotated, loss), expected, **CLOSE)
