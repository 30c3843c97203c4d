"""One step of blockwise Adam: a plain form, one with few calls, and one with few passes."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_linf.distributed.shards import sum_over_ranks
from lightning_linf.functional.blocks import wide_dtype
from lightning_linf.optim.blockwise.block_set import Unit


class Work(NamedTuple):
    """What a unit has of gradients in this step, and their state: of sharded ones, the parts."""

    unit: Unit
    options: dict[str, Any]  # the parameter group from which beta2 and eps are taken
    exp_avg_sq: Tensor  # (blocks,)
    exp_avg_sq_step: Tensor  # ()
    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    steps: list[Tensor]  # each ()
    groups: list[dict[str, Any]]  # parameter group of each
    given: list[Tensor]  # the parameters as they were given
    joint_norms: Tensor | None = None  # (blocks,): roots of the mean squares over all ranks

    @property
    def size(self) -> float:
        """Entries in a block, by which squares of norms are to be divided."""
        return self.unit.size(self.grads) if self.joint_norms is None else 1.0


def join_ranks(works: Sequence[Work]) -> list[Work]:
    """Add to works whose blocks lie on several ranks the norms of these, by one reduction."""
    spanning = [work for work in works if work.unit.spans_ranks]
    params, parts, owners = [], [], []
    for alike in _alike(spanning):
        for work, norms in zip(alike, _norms_by_gradient(alike), strict=True):
            size, device = work.unit.size(work.given), work.exp_avg_sq.device
            params += work.given
            parts += [work.unit.total(norm.square()).to(device) / size for norm in norms]
            owners += [work.unit.owner] * len(norms)
    squares: dict[Tensor, Tensor] = {}
    for owner, total in zip(owners, sum_over_ranks(params, parts), strict=True):
        squares[owner] = squares[owner] + total if owner in squares else total
    return [
        work._replace(joint_norms=squares[work.unit.owner].sqrt())
        if work.unit.spans_ranks
        else work
        for work in works
    ]


def update_one_by_one(works: Sequence[Work]) -> None:
    """Make the step tensor by tensor, as it is written down."""
    for work in works:
        beta2, eps, v = work.options["betas"][1], work.options["eps"], work.exp_avg_sq
        norms = work.joint_norms
        if norms is None:
            norms = work.unit.joint_norms([work.unit.norms(g, v.dtype) for g in work.grads], v)
        work.exp_avg_sq_step.add_(1)
        v.mul_(beta2).addcmul_(norms, norms, value=(1 - beta2) / work.size)
        v_hat = v / _bias_correction(beta2, work.exp_avg_sq_step, work.options)
        if work.options["eps_inside"]:
            denominator = v_hat.add_(eps).sqrt_()
        else:
            denominator = v_hat.sqrt_().add_(eps)
        for p, g, m, step, group in zip(
            work.params, work.grads, work.exp_avgs, work.steps, work.groups, strict=True
        ):
            lr, beta1 = group["lr"], group["betas"][0]
            step += 1
            if group["weight_decay"] != 0:
                p.mul_(1 - lr * group["weight_decay"])
            m.lerp_(-g if group["maximize"] else g, 1 - beta1)
            step_size = lr / _bias_correction(beta1, step, group)
            scaled = denominator
            if isinstance(step_size, Tensor):  # which addcdiv does not take
                scaled, step_size = denominator / step_size, 1.0
            p_view, m_view, scaled = work.unit.aligned(p, m, scaled)
            p_view.addcdiv_(m_view, scaled, value=-step_size)


def update_together(works: Sequence[Work]) -> None:
    """Make the step with calls that each update many tensors.

    Those whose names begin with an underscore are what torch's own optimizers are built on; there
    is no public form of them.
    """
    _count(works)
    members: dict[Any, list[tuple[Work, int, Tensor]]] = defaultdict(list)
    for alike in _alike(works):
        _update_exp_avg_sqs(alike)
        for work, denominator in zip(alike, _denominators(alike), strict=True):
            for place, (p, group) in enumerate(zip(work.params, work.groups, strict=True)):
                members[id(group), p.device, p.dtype].append((work, place, denominator))
    for group_members in members.values():
        _update_params(group_members)


def update_fused(works: Sequence[Work]) -> None:
    """Make the step of units of one block on the CPU with the fewest passes over memory.

    Given its second moment, it is a step of SGD with momentum and a learning rate of the tensor's
    own, for which torch has a kernel that reads and writes everything once.
    """
    counts = [work.exp_avg_sq_step for work in works] + [s for work in works for s in work.steps]
    torch._foreach_add_(counts, _number(1.0, counts[0]))
    for alike in _alike(works):
        _update_exp_avg_sqs(alike)
    # Read at once: each number that is read by itself costs as much as a small tensor's step.
    second_moments = torch.cat([work.exp_avg_sq for work in works]).tolist()
    numbers = torch.stack(counts).tolist()
    v_steps, steps = numbers[: len(works)], iter(numbers[len(works) :])
    for work, v, v_step in zip(works, second_moments, v_steps, strict=True):
        eps = work.options["eps"]
        v_hat = v / (1 - work.options["betas"][1] ** v_step)
        denominator = (v_hat + eps) ** 0.5 if work.options["eps_inside"] else v_hat**0.5 + eps
        for p, g, m, group in zip(work.params, work.grads, work.exp_avgs, work.groups, strict=True):
            lr, beta1 = float(group["lr"]), group["betas"][0]
            if group["weight_decay"] != 0:
                p.mul_(1 - lr * group["weight_decay"])
            scale = denominator * (1 - beta1 ** next(steps))
            torch._fused_sgd_(  # torch.optim.SGD has one learning rate for all tensors
                [p],
                [g],
                [m],
                lr=lr / scale if scale else math.inf,
                momentum=beta1,
                dampening=beta1,
                weight_decay=0.0,
                nesterov=False,
                maximize=group["maximize"],
                is_first_step=False,
            )


def _alike(works: Sequence[Work]) -> list[list[Work]]:
    """Group by what one call for many tensors has in common."""
    alike: dict[Any, list[Work]] = defaultdict(list)
    for work in works:
        alike[id(work.options), work.exp_avg_sq.device, work.exp_avg_sq.dtype].append(work)
    return list(alike.values())


def _count(works: Sequence[Work]) -> None:
    for counts in (
        [work.exp_avg_sq_step for work in works],
        [step for work in works for step in work.steps],
    ):
        torch._foreach_add_(counts, _number(1.0, counts[0]))


def _update_exp_avg_sqs(works: Sequence[Work]) -> None:
    """Update second moments of one parameter group, device and dtype."""
    beta2 = works[0].options["betas"][1]
    vs = [work.exp_avg_sq for work in works]
    norms = _norms(works)
    weights = [(1 - beta2) / work.size for work in works]
    torch._foreach_mul_(vs, _number(beta2, vs[0]))
    torch._foreach_addcmul_(vs, norms, norms, weights)


def _denominators(works: Sequence[Work]) -> Sequence[Tensor]:
    """Roots of corrected second moments of one parameter group, each (blocks,)."""
    options = works[0].options
    corrections = [
        _bias_correction(options["betas"][1], work.exp_avg_sq_step, options) for work in works
    ]
    v_hats = torch._foreach_div([work.exp_avg_sq for work in works], corrections)
    if options["eps_inside"]:
        torch._foreach_add_(v_hats, options["eps"])
    torch._foreach_sqrt_(v_hats)
    if not options["eps_inside"]:
        torch._foreach_add_(v_hats, options["eps"])
    return v_hats


def _norms(works: Sequence[Work]) -> list[Tensor]:
    """Norms of every unit (blocks,)."""
    v = works[0].exp_avg_sq
    found = iter(_norms_by_gradient([work for work in works if work.joint_norms is None]))
    return [
        work.unit.joint_norms(next(found), v) if work.joint_norms is None else work.joint_norms
        for work in works
    ]


def _norms_by_gradient(works: Sequence[Work]) -> list[list[Tensor]]:
    """Norms of every gradient of every unit (blocks,); those of whole ones on a GPU in one call."""
    if not works:
        return []
    v = works[0].exp_avg_sq
    if v.is_cpu:
        return [[work.unit.norms(g, v.dtype) for g in work.grads] for work in works]
    batch = [g for work in works if work.unit.is_whole for g in work.grads]
    batched = iter(torch._foreach_norm(batch, 2, dtype=v.dtype) if batch else ())
    return [
        [
            next(batched).view(1) if work.unit.is_whole else work.unit.norms(g, v.dtype)
            for g in work.grads
        ]
        for work in works
    ]


def _update_params(members: list[tuple[Work, int, Tensor]]) -> None:
    """Update first moments and parameters of one group, each given its denominator."""
    work, place, _ = members[0]
    group = work.groups[place]
    lr, beta1 = group["lr"], group["betas"][0]
    params = [work.params[place] for work, place, _ in members]
    grads = [work.grads[place] for work, place, _ in members]
    exp_avgs = [work.exp_avgs[place] for work, place, _ in members]
    if group["weight_decay"] != 0:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    corrections = [_bias_correction(beta1, work.steps[place], group) for work, place, _ in members]
    factors = torch._foreach_mul([denominator for _, _, denominator in members], corrections)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, -lr)
    views = [
        work.unit.aligned(p, m, factor)
        for (work, _, _), p, m, factor in zip(members, params, exp_avgs, factors, strict=True)
    ]
    torch._foreach_addcmul_(*map(list, zip(*views, strict=True)))


def _bias_correction(beta: float, step: Tensor, group: dict[str, Any]) -> Any:
    """Weight that a mean has after ``step`` updates: a tensor only if that is capturable."""
    if not group["capturable"]:
        return 1 - beta ** step.item()
    return 1 - beta ** step.to(wide_dtype(step))  # of 1 - 0.999 float32 loses five digits


def _number(value: float, like: Tensor) -> Any:
    # On the CPU a number would be made a tensor again for each of the tensors.
    return torch.tensor(value, dtype=like.dtype) if like.is_cpu else value
