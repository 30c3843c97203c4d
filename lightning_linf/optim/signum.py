"""Descent along the sign of a running mean of the gradient."""

from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_linf.distributed.shards import local, local_grad
from lightning_linf.optim.checked_optimizer import CheckedOptimizer
from lightning_linf.optim.hyperparameters import check_decay, check_nonnegative, refuse_sparse
from lightning_linf.optim.saved_state import check_shape, saved_entries


class Signum(CheckedOptimizer):
    r"""Move every coordinate by the learning rate, against the sign of the mean gradient.

    .. math::
        m &\leftarrow \beta m + (1 - \beta) g \\
        \theta &\leftarrow \theta - \eta \, (\operatorname{sign}(m) + \lambda \theta)

    with the learning rate :math:`\eta` (``lr``), :math:`\beta` (``momentum``) and :math:`\lambda`
    (``weight_decay``). This is steepest descent in the l-infinity norm, and what Adam becomes
    without its second moment.

    The sign of NaN is taken to be NaN, whereas :func:`torch.sign` gives 0: a NaN in the gradient
    then shows in the weights, instead of stopping a coordinate for good without a word. Parameters
    may be sharded (DTensors); the state is then sharded alike, and a step needs no communication.

    Args:
        params: Real parameters, pairs of name and parameter, or parameter groups of either.
        lr: Learning rate; may be a tensor of shape ().
        momentum: Decay of the mean gradient. With 0 this is signSGD.
        weight_decay: Decoupled weight decay, as in AdamW.
        maximize: Maximize the objective instead of minimizing it.
        foreach: Update many tensors with each call, which is faster on a GPU and needs memory for
            one temporary copy of the parameters. Default: True for parameters on a GPU.

    Raises:
        ValueError: If an argument is out of range, or a parameter is complex.

    Source:
        Algorithm 2 of Bernstein, Wang, Azizzadenesheli & Anandkumar, signSGD, ICML 2018,
        arXiv:1802.04434. Memory: one number for each parameter, the mean gradient.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = Signum([p], lr=0.1)
        >>> p.grad = torch.tensor([3.0, -0.01])
        >>> optimizer.step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
    """

    decoupled_weight_decay = True
    carried_state = ("exp_avg",)
    _added_options: ClassVar = {"maximize": False, "foreach": None}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_nonnegative("Signum", "lr", group["lr"])
        check_nonnegative("Signum", "weight_decay", group["weight_decay"])
        check_decay("Signum", "momentum", group["momentum"])
        for p in group["params"]:
            if p.dtype.is_complex:
                raise ValueError(
                    f"Signum: expected real parameters, got {p.dtype}, which has no sign. "
                    "Optimize its real and imaginary parts."
                )

    def _check_saved(self, saved: dict[str, Any]) -> None:
        groups = self.param_groups
        for _, p, entry in saved_entries(groups, saved):
            if entry:
                check_shape("Signum", groups, p, "exp_avg", entry.get("exp_avg"))

    def _step(self) -> None:
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    refuse_sparse("Signum", p.grad)
                if "exp_avg" not in self.state[p]:
                    zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
                    self.state[p]["exp_avg"] = zeros
                alike[p.device, p.dtype].append(p)
            for params in alike.values():
                grads = [local_grad(p, p.grad) for p in params if p.grad is not None]
                exp_avgs = [local(self.state[p]["exp_avg"]) for p in params]
                foreach = params[0].is_cuda if group["foreach"] is None else group["foreach"]
                update = _multi_tensor_signum if foreach else _single_tensor_signum
                update([local(p) for p in params], grads, exp_avgs, group)


def _single_tensor_signum(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], group: dict[str, Any]
) -> None:
    lr = group["lr"]
    for p, g, m in zip(params, grads, exp_avgs, strict=True):
        m.lerp_(-g if group["maximize"] else g, 1 - group["momentum"])
        if group["weight_decay"] != 0:
            p.mul_(1 - lr * group["weight_decay"])
        p.sub_(m.sign().add_(m, alpha=0.0).mul_(lr))  # adding 0 m keeps a NaN


def _multi_tensor_signum(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], group: dict[str, Any]
) -> None:
    lr = group["lr"]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(exp_avgs, grads, 1 - group["momentum"])
    if group["weight_decay"] != 0:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    signs = torch._foreach_sign(exp_avgs)
    torch._foreach_add_(signs, exp_avgs, alpha=0.0)  # keeps a NaN
    torch._foreach_mul_(signs, lr)
    torch._foreach_sub_(params, signs)
