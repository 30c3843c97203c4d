"""Carry what an optimizer knows of its gradients over to another one."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam
from lightning_linf.optim.reparameterized.reparameterized import Reparameterized
from lightning_linf.optim.signum import Signum
from lightning_linf.swap.groups import has_two_betas


class _Mean(NamedTuple):
    """A running mean of one parameter's gradient, or of its square, by entry."""

    value: Tensor
    weight: float  # sum of the weights of the gradients in it: less than 1 in the first steps


class _Moments(NamedTuple):
    steps: dict[Tensor, float]  # of parameters for which they are counted
    means: dict[Tensor, _Mean]
    squares: dict[Tensor, _Mean]


def carry_state(old: Optimizer, new: Optimizer) -> str:
    """Give a new optimizer the momentum and the second moments of the one that it replaces.

    Momentum becomes the same running mean of the gradient, in the coordinates of the new optimizer,
    scaled as that keeps it (SGD sums what Adam averages). Second moments become means over the
    blocks of the new optimizer, or are given to all entries of a block; new coordinates get their
    expectation for uncorrelated gradients. Between optimizers of one kind, partition, map and decay
    of means (betas, momentum) all of the state is copied to the last bit. What the old optimizer
    does not keep cannot be carried: Adam after SGD starts its moments anew.

    Known are Adam, AdamW, SGD, :class:`BlockwiseAdam`, :class:`~lightning_linf.optim.AdaSGD` and
    :class:`Signum`, also within :class:`Reparameterized`; of others only ``exp_avg`` and
    ``exp_avg_sq`` are read, and nothing if they have other than two betas (Adan, AdEMAMix). What a
    coupled weight decay has added to the moments stays in them. SGD and Signum do not count their
    steps: their momentum is taken as that of a long run.

    Args:
        old: The optimizer with the state, which is left as it is.
        new: One of the same parameters in the same groups, without a state.

    Returns:
        What was carried, in words.
    """
    if not any(old.state.values()):
        return "it has no state yet"
    same_map = _map_of(old) == _map_of(new)
    if same_map and _kind(old) == _kind(new):
        state = deepcopy(old.state_dict()["state"])  # the new one steps in place
        new.load_state_dict({**new.state_dict(), "state": state})
        return "all of its state was carried over"
    moments = _read(old)
    if not same_map:
        moments = _in_coordinates(moments, old, new)
    return _write(new, moments, "" if same_map else ", as their expectation in its coordinates")


def _inner(optimizer: Optimizer) -> Optimizer:
    return optimizer.inner if isinstance(optimizer, Reparameterized) else optimizer


def _map_of(optimizer: Optimizer) -> tuple[object, ...]:
    reparameterization = getattr(optimizer, "reparameterization", None)
    of_tensors = [group.get("reparameterization") for group in optimizer.param_groups]
    return reparameterization, of_tensors  # two maps may print the same


def _kind(optimizer: Optimizer) -> tuple[object, ...]:
    """What two optimizers have in common if the state of one serves the other as it is."""
    inner = _inner(optimizer)
    partition = inner.partition if isinstance(inner, BlockwiseAdam) else None
    keys = ("betas", "momentum", "dampening", "amsgrad", "centered")
    decays = [[group.get(key) for key in keys] for group in optimizer.param_groups]
    return type(inner), partition, decays


def _pairs(optimizer: Optimizer) -> Iterable[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Every parameter, what the inner optimizer steps in its place, and its group."""
    inner = _inner(optimizer)
    for group, stepped in zip(optimizer.param_groups, inner.param_groups, strict=True):
        for theta, phi in zip(group["params"], stepped["params"], strict=True):
            yield theta, phi, group


def _read(optimizer: Optimizer) -> _Moments:
    moments = _Moments({}, {}, {})
    inner = _inner(optimizer)
    blocks = inner.expanded_exp_avg_sq() if isinstance(inner, BlockwiseAdam) else {}
    for theta, phi, group in _pairs(optimizer):
        if not has_two_betas(group):  # whose means they decay nobody knows
            continue
        state = inner.state.get(phi, {})
        beta1, beta2 = group.get("betas") or (0.0, 0.0)
        steps = None
        if "step" in state:
            steps = moments.steps[theta] = float(state["step"])
        if isinstance(inner, SGD):
            weight = _sgd_weight(group)
            if weight > 0 and state.get("momentum_buffer") is not None:
                moments.means[theta] = _Mean(state["momentum_buffer"], weight)
        elif "exp_avg" in state and steps != 0:
            weight = 1.0 if steps is None else 1 - beta1**steps
            moments.means[theta] = _Mean(state["exp_avg"], weight)
        if phi in blocks:
            value, count = blocks[phi]
            moments.squares[theta] = _Mean(value, 1 - beta2**count)
        elif "exp_avg_sq" in state and steps and state["exp_avg_sq"].shape == phi.shape:
            moments.squares[theta] = _Mean(state["exp_avg_sq"], 1 - beta2**steps)
    return moments


def _in_coordinates(moments: _Moments, old: Optimizer, new: Optimizer) -> _Moments:
    def changed(means: dict[Tensor, _Mean], squared: bool) -> dict[Tensor, _Mean]:
        values = {theta: mean.value / mean.weight for theta, mean in means.items()}
        if isinstance(old, Reparameterized):
            values = old.to_theta(values, squared=squared)
        if isinstance(new, Reparameterized):
            values = new.to_phi(values, squared=squared)
        return {theta: _Mean(value, 1.0) for theta, value in values.items()}

    most = max(moments.steps.values(), default=None)  # for those that a map mixes in
    means = changed(moments.means, squared=False)
    steps = {} if most is None else {theta: moments.steps.get(theta, most) for theta in means}
    return _Moments(steps, means, changed(moments.squares, squared=True))


def _write(new: Optimizer, moments: _Moments, note: str) -> str:
    inner = _inner(new)
    adaptive = isinstance(inner, (Adam, AdamW, BlockwiseAdam))
    adaptive = adaptive and all(map(has_two_betas, new.param_groups))
    state: dict[int, dict[str, Any]] = {}
    squares: dict[Tensor, tuple[Tensor, float]] = {}
    for index, (theta, phi, group) in enumerate(_pairs(new)):
        if theta not in moments.means or (adaptive and theta not in moments.squares):
            continue
        mean = moments.means[theta]
        if isinstance(inner, SGD):
            if (weight := _sgd_weight(group)) > 0:
                state[index] = {"momentum_buffer": _weighted(mean, weight)}
        elif isinstance(inner, Signum):
            state[index] = {"exp_avg": _weighted(mean, 1.0)}
        elif adaptive:
            steps = moments.steps[theta]
            beta1, beta2 = group["betas"]
            entry = {
                "step": torch.tensor(steps),
                "exp_avg": _weighted(mean, 1 - beta1**steps),
            }
            square = _weighted(moments.squares[theta], 1 - beta2**steps)
            if isinstance(inner, BlockwiseAdam):
                squares[phi] = square, steps
            else:
                entry["exp_avg_sq"] = square
                if group["amsgrad"]:
                    entry["max_exp_avg_sq"] = square.clone()
            state[index] = entry
    if not state:
        lacking = bool(moments.means) and adaptive
        reason = ": it needs second moments, which the former does not keep" if lacking else ""
        return f"its state starts anew{reason}"
    inner.load_state_dict({**inner.state_dict(), "state": state})
    if isinstance(inner, BlockwiseAdam):
        inner.load_exp_avg_sq(squares)
    if isinstance(new, Reparameterized):
        new.adopt_state()
    if isinstance(inner, BlockwiseAdam):
        return f"momentum was carried over, and second moments, as means over its blocks{note}"
    return "momentum was carried over" + (f", and second moments{note}" if adaptive else "")


def _sgd_weight(group: dict[str, Any]) -> float:
    """Sum of the weights of all gradients in a momentum buffer; 0 if it is no mean of them."""
    momentum, dampening = group["momentum"], group["dampening"]
    return (1 - dampening) / (1 - momentum) if 0 < momentum < 1 else 0.0


def _weighted(mean: _Mean, weight: float) -> Tensor:
    if mean.weight == weight:  # to the last bit
        return mean.value.detach().clone()
    return mean.value.detach() * (weight / mean.weight)
