"""The next step of a live optimizer as a linear map of the gradient, as its stability needs it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_linf.errors import ProbeError
from lightning_linf.functional.stability import stability_threshold
from lightning_linf.optim.blockwise import BlockwiseAdam
from lightning_linf.optim.reparameterized import Reparameterized
from lightning_linf.optim.weight_decay import is_decoupled

_SUPPORTED = "SGD, Adam, AdamW, BlockwiseAdam, AdaSGD, and these within Reparameterized"


class LinearStep(NamedTuple):
    """What one parameter's next step is made of; in the optimizer's coordinates, if it has own."""

    rates: Tensor  # lr / P by entry: without momentum the next step is -rates times the gradient
    threshold: float  # of rates times curvature: above it steps diverge
    weight_decay: float  # what is added to the curvature; 0 if weight decay is decoupled


def linear_steps(optimizers: Iterable[Optimizer]) -> dict[Tensor, LinearStep]:
    r"""Read the preconditioner P of each parameter from the state of its optimizer.

    P is held fixed, as it is after the last step: :math:`(1 - \beta_1^t) (\sqrt{\hat v} +
    \epsilon)` for Adam after t steps, which divides m by the first factor; with one v for each
    block for :class:`BlockwiseAdam`; and 1 for SGD. With ``amsgrad`` v is the largest so far. The
    learning rate is that of the parameter group now, so after a scheduler's step that of the next
    step.

    Args:
        optimizers: Which step different parameters.

    Returns:
        By parameter, in its shape and sharded as it is. Rates of a parameter that has never had a
        gradient are 0: it is not stepped.

    Raises:
        ValueError: If an optimizer is of another class, or maximizes.
        ProbeError: If an adaptive optimizer has not made a step yet.

    Source:
        P of Adam: Cohen et al., arXiv:2207.14484, of blockwise Adam by the same reasoning.
    """
    optimizers, steps = list(optimizers), dict[Tensor, LinearStep]()
    if (reason := why_not_linear(optimizers)) is not None:
        raise ValueError(f"measure_edge: {reason}")
    for optimizer in optimizers:
        inner = _inner(optimizer)
        if not isinstance(inner, SGD) and not any(inner.state.values()):
            raise ProbeError(
                f"measure_edge: expected {type(inner).__name__} to have made a step, got one "
                "without second moments. Measure after a step."
            )
        blocks = inner.expanded_exp_avg_sq() if isinstance(inner, BlockwiseAdam) else None
        # A scheduler changes the outer groups, which the inner ones follow at the next step.
        for group, stepped in zip(optimizer.param_groups, inner.param_groups, strict=True):
            for theta, phi in zip(group["params"], stepped["params"], strict=True):
                rates = _rates(inner, phi, group, blocks)
                decay = 0.0 if is_decoupled(inner, group) else float(group["weight_decay"])
                steps[theta] = LinearStep(rates, _threshold(inner, group), decay)
    return steps


def why_not_linear(optimizers: Iterable[Optimizer]) -> str | None:
    """Say what is in the way of an edge of stability, and what to do; None if nothing is."""
    for optimizer in optimizers:
        inner = _inner(optimizer)
        if not isinstance(inner, (SGD, Adam, AdamW, BlockwiseAdam)):
            return (
                "expected an optimizer whose step is linear in the gradient once its second "
                f"moments are held fixed ({_SUPPORTED}), got {type(inner).__name__}. Of others the "
                "edge of stability is not known."
            )
        if any(group["maximize"] for group in optimizer.param_groups):
            return (
                f"expected an optimizer that minimizes, got {type(inner).__name__} with "
                "maximize=True. Minimize the negative loss."
            )
    return None


def _inner(optimizer: Optimizer) -> Optimizer:
    return optimizer.inner if isinstance(optimizer, Reparameterized) else optimizer


def _threshold(inner: Optimizer, group: dict[str, Any]) -> float:
    keep = 1.0
    if is_decoupled(inner, group):
        keep -= float(group["lr"]) * float(group["weight_decay"])
    if isinstance(inner, SGD):
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        if momentum == 0:
            dampening = 0.0  # torch then steps along the gradient itself
        return stability_threshold(
            momentum, dampening=dampening, nesterov=group["nesterov"], keep=keep
        )
    beta1 = float(group["betas"][0])
    return stability_threshold(beta1, dampening=beta1, keep=keep)


def _rates(
    inner: Optimizer,
    phi: Tensor,
    group: dict[str, Any],
    blocks: dict[Tensor, tuple[Tensor, float]] | None,
) -> Tensor:
    """Compute lr / P by entry, in the shape of the parameter; SGD's take no memory."""
    lr = float(group["lr"])
    state = inner.state.get(phi, {})
    # In float32 at least: parameters of low precision have moments of low precision.
    dtype = torch.promote_types(phi.dtype, torch.float32)
    if isinstance(inner, SGD):
        return torch.tensor(lr, dtype=dtype, device=phi.device).expand(phi.shape)
    if not float(state.get("step", 0)) > 0:
        return torch.tensor(0.0, dtype=dtype, device=phi.device).expand(phi.shape)
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if blocks is not None:
        v, count = blocks[phi]
    else:
        v, count = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"], state["step"]
    v_hat = v.to(dtype) / (1 - beta2 ** float(count))
    eps = group["eps"]
    denominator = (v_hat + eps).sqrt() if group.get("eps_inside") else v_hat.sqrt() + eps
    rates: Tensor = lr / (1 - beta1 ** float(state["step"])) / denominator
    return rates
