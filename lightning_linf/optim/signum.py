"""Descent along the sign of a running mean of the gradient."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_linf.distributed.shards import local, local_grad
from lightning_linf.kernels import runs_kernels
from lightning_linf.optim.checked_optimizer import CheckedOptimizer
from lightning_linf.optim.hyperparameters import check_decay, check_nonnegative, refuse_sparse
from lightning_linf.optim.saved_state import check_shape, saved_entries

_CHUNK = 2**18  # entries: of each tensor a MB in float32
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


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
        foreach: False: update tensor by tensor, as the formulas are written. Default: on a GPU with
            Triton by one kernel for all, on the CPU by chunks that stay in its cache.

    Raises:
        ValueError: If an argument is out of range, or a parameter is complex.

    Source:
        Algorithm 2 of Bernstein, Wang, Azizzadenesheli & Anandkumar, signSGD, ICML 2018,
        arXiv:1802.04434. Memory: one number for each parameter, the mean gradient. Cost: the
        kernel moves five numbers for each parameter, where Adam moves seven.

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

    def _prepare(self) -> list[Callable[[], None]]:
        alike: dict[Any, tuple[dict[str, Any], list[Tensor]]] = {}
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    refuse_sparse("Signum", p.grad)
                if "exp_avg" not in self.state[p]:
                    zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
                    self.state[p]["exp_avg"] = zeros
                alike.setdefault((index, p.device, p.dtype), (group, []))[1].append(p)
        return [
            _update(params, [local(self.state[p]["exp_avg"]) for p in params], group)
            for group, params in alike.values()
        ]


def _update(
    whole_params: list[Tensor], exp_avgs: list[Tensor], group: dict[str, Any]
) -> Callable[[], None]:
    """Give the step of parameters of one device and dtype, in the fastest form that there is."""
    params = [local(p) for p in whole_params]

    def grads() -> list[Tensor]:
        return [local_grad(p, g) for p in whole_params if (g := p.grad) is not None]

    tensors = list(zip(params, grads(), exp_avgs, strict=True))
    is_plain = group["foreach"] is False or torch.compiler.is_compiling()
    if not is_plain and runs_kernels(params[0].device) and _has_kernel(tensors, group["lr"]):
        from lightning_linf.kernels.signum import SignumLaunch  # imports triton

        launch = SignumLaunch(*map(list, zip(*tensors, strict=True)))
        return lambda: launch(grads(), group)
    forms = [
        _single_tensor_signum if is_plain or not _serve(*each) else _chunked_signum
        for each in tensors
    ]

    def update() -> None:
        for make_step, p, g, m in zip(forms, params, grads(), exp_avgs, strict=True):
            make_step(p, g, m, group)

    return update


def _serve(p: Tensor, g: Tensor, m: Tensor) -> bool:
    """Say whether chunks serve: contiguous, and not of a dtype that torch's kernels round to."""
    is_alike = p.dtype == g.dtype == m.dtype and p.shape == g.shape == m.shape
    is_wide = p.dtype in (torch.float32, torch.float64)
    return is_alike and is_wide and all(t.is_cpu and t.is_contiguous() for t in (p, g, m))


def _has_kernel(tensors: list[tuple[Tensor, Tensor, Tensor]], lr: Any) -> bool:
    """Say whether the kernel serves: one dtype that it knows, and entries in the same order."""
    device, dtypes = tensors[0][0].device, {tuple(t.dtype for t in each) for each in tensors}
    is_here = not isinstance(lr, Tensor) or lr.device.type == "cpu" or lr.device == device
    is_known = len(dtypes) == 1 and _DTYPES.issuperset(*dtypes)
    return is_here and is_known and all(_has_one_order(*each) for each in tensors)


def _has_one_order(p: Tensor, g: Tensor, m: Tensor) -> bool:
    """Say whether the entries of all three lie in memory in the same order, without gaps."""
    if p.is_contiguous() and g.is_contiguous() and m.is_contiguous():
        return True
    is_dense: bool = torch.ops.aten.is_non_overlapping_and_dense.default(p)
    return is_dense and p.stride() == g.stride() == m.stride()


def _single_tensor_signum(p: Tensor, g: Tensor, m: Tensor, group: dict[str, Any]) -> None:
    lr = group["lr"]
    m.lerp_(-g if group["maximize"] else g, 1 - group["momentum"])
    if group["weight_decay"] != 0:
        p.mul_(1 - lr * group["weight_decay"])
    p.sub_(m.sign().add_(m, alpha=0.0).mul_(lr))  # adding 0 m keeps a NaN


def _chunked_signum(p: Tensor, g: Tensor, m: Tensor, group: dict[str, Any]) -> None:
    """Make the step of contiguous tensors by chunks that stay in a core's cache."""
    parts = [(p, g, m)]
    if p.numel() > _CHUNK:
        chunks = (torch.split(t.view(-1), _CHUNK) for t in (p, g, m))
        parts = list(zip(*chunks, strict=True))
    for p_part, g_part, m_part in parts:
        m_part.lerp_(-g_part if group["maximize"] else g_part, 1 - group["momentum"])
        sign = m_part.sign().add_(m_part, alpha=0.0)
        torch._fused_sgd_(  # a step of SGD along the sign is that of Signum, with its decay
            [p_part], [sign], [], lr=float(group["lr"]), momentum=0.0, dampening=0.0,
            weight_decay=group["weight_decay"], nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip
