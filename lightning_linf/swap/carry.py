"""Carry the momentum and second moments of one optimizer over to another one."""

import math
from collections.abc import Collection, Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_linf.optim import BlockwiseAdam, MuonWithAdamW, Reparameterized
from lightning_linf.swap.groups import has_two_betas, inner_of

_MUONS = (MuonWithAdamW, getattr(torch.optim, "Muon", MuonWithAdamW))


class _Mean(NamedTuple):
    """A running mean of one parameter's gradient, or of its square, by entry."""

    value: Tensor
    weight: float  # sum of the weights of the gradients in it; 1 - beta**step if it started at 0


class _Moments(NamedTuple):
    """What an optimizer knows of its gradients, by parameter, in no optimizer's own form."""

    steps: dict[Tensor, float]  # only where steps are counted
    means: dict[Tensor, _Mean]
    squares: dict[Tensor, _Mean]


def carry_state(old: Optimizer, new: Optimizer) -> str:
    """Give a new optimizer the momentum and the second moments of the one that it replaces.

    If class, partition, map and decays (betas, momentum) are the same, the whole state is copied
    bit for bit. Else momentum becomes the same running mean of the gradient in the form of the new
    optimizer (SGD sums what Adam averages) and in its coordinates. Second moments become means over
    the blocks of the new optimizer, or are given to all entries of a block; in other coordinates
    they become what is expected if the coordinates of the gradient are uncorrelated. What the old
    optimizer does not keep cannot be carried: Adam after SGD starts its moments anew.

    Momentum is read from Adam, AdamW, SGD, Muon, and whatever else keeps ``exp_avg``; second
    moments from :class:`BlockwiseAdam` and whatever keeps ``exp_avg_sq``, also within
    :class:`Reparameterized`. They are written to Adam, AdamW, SGD, ours, and classes that name them
    in an attribute ``carried_state`` (see :mod:`lightning_linf.optim`). With other than two betas
    (Adan, AdEMAMix) nothing is read or written. What a coupled weight decay has added to moments
    stays in them. SGD, Signum and Muon do not count their steps; their momentum is taken as that of
    a long run.

    Args:
        old: The optimizer with the state. It is not changed.
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
        moments = _in_new_coordinates(moments, old, new)
    return _write(new, moments, "" if same_map else ", as their expectation in its coordinates")


def _map_of(optimizer: Optimizer) -> tuple[object, ...]:
    reparameterization = getattr(optimizer, "reparameterization", None)
    of_tensors = [group.get("reparameterization") for group in optimizer.param_groups]
    return reparameterization, of_tensors  # the latter is text, in which two maps may look the same


def _kind(optimizer: Optimizer) -> tuple[object, ...]:
    """Give what two optimizers must have in common for one to load the state of the other."""
    inner = inner_of(optimizer)
    keys = ("betas", "momentum", "dampening", "amsgrad", "centered")
    decays = [[group.get(key) for key in keys] for group in optimizer.param_groups]
    blocks = getattr(inner, "partition", None), getattr(inner, "matrices", None)
    return type(inner), blocks, decays


def _carried_state(optimizer: Optimizer, phi: Tensor) -> tuple[str, ...]:
    """Give the names of the state entries of a stepped parameter that can be written."""
    inner = inner_of(optimizer)
    if not all(map(has_two_betas, optimizer.param_groups)):
        return ()
    if isinstance(inner, SGD) or (isinstance(inner, MuonWithAdamW) and inner.is_matrix(phi)):
        return ("momentum_buffer",)
    if isinstance(inner, (Adam, AdamW, MuonWithAdamW)):
        return ("step", "exp_avg", "exp_avg_sq")
    return getattr(inner, "carried_state", ())


def _pairs(optimizer: Optimizer) -> Iterable[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Yield every parameter, the tensor that the inner optimizer steps for it, and its group."""
    inner = inner_of(optimizer)
    for group, stepped in zip(optimizer.param_groups, inner.param_groups, strict=True):
        for theta, phi in zip(group["params"], stepped["params"], strict=True):
            yield theta, phi, group


def _read(optimizer: Optimizer) -> _Moments:
    moments = _Moments({}, {}, {})
    inner = inner_of(optimizer)
    blocks = inner.expanded_exp_avg_sq() if isinstance(inner, BlockwiseAdam) else {}
    for theta, phi, group in _pairs(optimizer):
        if not has_two_betas(group):
            continue
        state = inner.state.get(phi, {})
        beta1, beta2 = _betas(group)
        steps = None
        if "step" in state:
            steps = moments.steps[theta] = float(state["step"])
        if isinstance(inner, SGD):
            weight = _buffer_weight(group)
            if weight > 0 and state.get("momentum_buffer") is not None:
                moments.means[theta] = _Mean(state["momentum_buffer"], weight)
        elif isinstance(inner, _MUONS) and "momentum_buffer" in state:
            moments.means[theta] = _Mean(state["momentum_buffer"], 1.0)
        elif "exp_avg" in state and steps != 0:
            weight = 1.0 if steps is None else 1 - beta1**steps
            moments.means[theta] = _Mean(state["exp_avg"], weight)
        if phi in blocks:
            value, count = blocks[phi]
            moments.squares[theta] = _Mean(value, 1 - beta2**count)
        elif "exp_avg_sq" in state and steps and state["exp_avg_sq"].shape == phi.shape:
            moments.squares[theta] = _Mean(state["exp_avg_sq"], 1 - beta2**steps)
    return moments


def _in_new_coordinates(moments: _Moments, old: Optimizer, new: Optimizer) -> _Moments:
    def changed(means: dict[Tensor, _Mean], squared: bool) -> dict[Tensor, _Mean]:
        values = {theta: mean.value / mean.weight for theta, mean in means.items()}
        if isinstance(old, Reparameterized):
            values = old.to_theta(values, squared=squared)
        if isinstance(new, Reparameterized):
            values = new.to_phi(values, squared=squared)
        return {theta: _Mean(value, 1.0) for theta, value in values.items()}

    most = max(moments.steps.values(), default=None)  # for parameters that a map mixes in
    means = changed(moments.means, squared=False)
    # Under a map that mixes tensors, missing squares would count as zero: of Muon's matrices, say.
    squares = moments.squares if moments.squares.keys() >= moments.means.keys() else {}
    steps = {} if most is None else {theta: moments.steps.get(theta, most) for theta in means}
    return _Moments(steps, means, changed(squares, squared=True))


def _write(new: Optimizer, moments: _Moments, note: str) -> str:
    inner = inner_of(new)
    is_adaptive, num_lacking = False, 0
    state: dict[int, dict[str, Any]] = {}
    squares: dict[Tensor, tuple[Tensor, float]] = {}  # of which blocks take the means
    for index, (theta, phi, group) in enumerate(_pairs(new)):
        names = _carried_state(new, phi)
        if not names or theta not in moments.means:
            continue
        if not _are_known(names, moments, theta):
            num_lacking += 1
            continue
        entry = _entry(names, moments, theta, group)
        if "exp_avg_sq" in names:
            is_adaptive = True
            if isinstance(inner, BlockwiseAdam):
                squares[phi] = entry.pop("exp_avg_sq"), moments.steps[theta]
        if entry:
            state[index] = entry
    if not state:
        reason = ": it needs second moments, which the former does not keep" if num_lacking else ""
        return f"its state starts anew{reason}"
    inner.load_state_dict({**inner.state_dict(), "state": state})
    if isinstance(inner, BlockwiseAdam):
        inner.load_exp_avg_sq(squares)
        note = f", as means over its blocks{note}"
    if isinstance(new, Reparameterized):
        new.adopt_state()
    done = "momentum was carried over" + (f", and second moments{note}" if is_adaptive else "")
    if not num_lacking:
        return done
    return f"{done}; tensors without second moments in the former start anew ({num_lacking})"


def _are_known(names: Collection[str], moments: _Moments, theta: Tensor) -> bool:
    """Tell whether all state entries of these names can be made for a parameter."""
    return ("exp_avg_sq" not in names or theta in moments.squares) and (
        "step" not in names or theta in moments.steps
    )


def _entry(
    names: Collection[str], moments: _Moments, theta: Tensor, group: dict[str, Any]
) -> dict[str, Any]:
    """Give the state of a parameter in the form of the new optimizer."""
    mean, entry = moments.means[theta], dict[str, Any]()
    if "momentum_buffer" in names and (weight := _buffer_weight(group)) > 0:
        entry["momentum_buffer"] = _weighted(mean, weight)
    beta1, beta2 = _betas(group)
    steps = moments.steps[theta] if "step" in names else math.inf  # as after a long run
    if "step" in names:
        entry["step"] = torch.tensor(steps)
    if "exp_avg" in names:
        entry["exp_avg"] = _weighted(mean, 1 - beta1**steps)
    if "exp_avg_sq" in names:
        entry["exp_avg_sq"] = _weighted(moments.squares[theta], 1 - beta2**steps)
        if group.get("amsgrad"):
            entry["max_exp_avg_sq"] = entry["exp_avg_sq"].clone()
    return entry


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    betas: tuple[float, float] = group.get("betas") or (0.0, 0.0)
    return betas


def _buffer_weight(group: dict[str, Any]) -> float:
    """Sum the weights of all gradients in a momentum buffer; 0 if it is no mean of them."""
    if "momentum" not in group:  # Muon's, which is a running mean
        return 1.0
    momentum, dampening = group["momentum"], group["dampening"]
    return (1 - dampening) / (1 - momentum) if 0 < momentum < 1 else 0.0


def _weighted(mean: _Mean, weight: float) -> Tensor:
    """Give a mean the weight that it has in the new optimizer."""
    if mean.weight == weight:  # keeps every bit
        return mean.value.detach().clone()
    return mean.value.detach() * (weight / mean.weight)
