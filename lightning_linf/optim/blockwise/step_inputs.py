"""What one step of blockwise Adam reads and writes: gradients, moments, counts, options."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_linf.distributed.shards import (
    are_sharded_unlike,
    local,
    local_grad,
    sum_over_ranks,
)
from lightning_linf.optim.blockwise.block_set import BlockSet
from lightning_linf.optim.hyperparameters import refuse_sparse


class StepInputs(NamedTuple):
    """A block set with those of its parameters that have a gradient, and their state.

    Of sharded tensors, these are this rank's parts.
    """

    blocks: BlockSet
    options: dict[str, Any]  # the parameter group that beta2 and eps are taken from
    exp_avg_sq: Tensor  # (blocks,)
    exp_avg_sq_step: Tensor  # ()
    params: list[Tensor]
    exp_avgs: list[Tensor]
    steps: list[Tensor]  # each ()
    groups: list[dict[str, Any]]  # the parameter group of each parameter
    whole_params: list[Tensor]  # the parameters themselves, not this rank's parts
    converted_grads: list[Tensor] | None = None  # if they were sharded in another way
    norms_over_ranks: Tensor | None = None  # (blocks,): roots of the mean squares over all ranks

    @property
    def grads(self) -> list[Tensor]:
        """The gradients: read where they lie, so that inputs that are kept do not hold them."""
        if self.converted_grads is not None:
            return self.converted_grads
        grads = [g for p in self.whole_params if (g := p.grad) is not None]
        return list(map(local, grads)) if self.blocks.is_sharded else grads

    @property
    def size(self) -> float:
        """The number of entries by which squares of norms are to be divided."""
        return self.blocks.size(self.grads) if self.norms_over_ranks is None else 1.0


def collect(optimizer: Optimizer, blocks: BlockSet) -> StepInputs | None:
    """Collect the inputs of a block set, with new state where there is none yet.

    Returns:
        The inputs, or None if no parameter has a gradient.

    Raises:
        ValueError: If a gradient is sparse.
    """
    params, exp_avgs, steps, groups = [], [], [], []
    for p, index in zip(blocks.params, blocks.groups, strict=True):
        grad = p.grad
        if grad is None:
            continue
        if grad.is_sparse:
            refuse_sparse(type(optimizer).__name__, grad)
        group, state = optimizer.param_groups[index], optimizer.state[p]
        if "step" not in state:
            state["step"] = _zero_count(p, group)
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        params.append(p)
        exp_avgs.append(state["exp_avg"])
        steps.append(state["step"])
        groups.append(group)
    if not params:
        return None
    blocks.move_index()
    state, whole, grads = second_moments(optimizer, blocks), params, None
    v, count = state["exp_avg_sq"], state["exp_avg_sq_step"]
    if blocks.is_sharded:
        pairs = [(p, p.grad) for p in whole if p.grad is not None]
        if any(are_sharded_unlike(p, grad) for p, grad in pairs):
            grads = [local_grad(p, grad) for p, grad in pairs]
        params, exp_avgs, v = list(map(local, whole)), list(map(local, exp_avgs)), local(v)
    if blocks.is_identity:
        v = v.view(-1)
    options = options_of(optimizer, blocks)
    return StepInputs(blocks, options, v, count, params, exp_avgs, steps, groups, whole, grads)


def second_moments(optimizer: Optimizer, blocks: BlockSet) -> dict[str, Any]:
    """Give the state that holds the second moments of a block set, with zeros if it is new."""
    p = blocks.owner
    state: dict[str, Any] = optimizer.state[p]
    if "exp_avg_sq" not in state:
        if blocks.is_identity:
            form = torch.contiguous_format
            v = torch.zeros_like(p, dtype=blocks.dtype, memory_format=form)
        else:
            v = local(p).new_zeros(blocks.num_blocks, dtype=blocks.dtype)
        state["exp_avg_sq"] = v
        state["exp_avg_sq_step"] = _zero_count(p, options_of(optimizer, blocks))
    return state


def options_of(optimizer: Optimizer, blocks: BlockSet) -> dict[str, Any]:
    """Give the parameter group whose beta2, eps and the like hold for a block set."""
    return optimizer.param_groups[blocks.groups[0]]


def _zero_count(p: Tensor, group: dict[str, Any]) -> Tensor:
    # On the CPU, unless it is to be captured: reading it there does not wait for a GPU.
    return torch.zeros((), dtype=torch.float32, device=p.device if group["capturable"] else "cpu")


def group_alike(inputs: Sequence[StepInputs]) -> list[list[StepInputs]]:
    """Group inputs by what one call for many tensors has in common: options, device, dtype."""
    alike: dict[Any, list[StepInputs]] = defaultdict(list)
    for each in inputs:
        alike[id(each.options), each.exp_avg_sq.device, each.exp_avg_sq.dtype].append(each)
    return list(alike.values())


def with_norms_over_ranks(inputs: Sequence[StepInputs]) -> list[StepInputs]:
    """Make room for the norms of blocks that lie on several ranks."""
    return [
        each._replace(norms_over_ranks=each.exp_avg_sq.new_empty(each.blocks.num_blocks))
        if each.blocks.spans_ranks
        else each
        for each in inputs
    ]


def write_norms_over_ranks(inputs: Sequence[StepInputs]) -> None:
    """Compute the norms of blocks that lie on several ranks, by one reduction for all of them."""
    spanning = [each for each in inputs if each.norms_over_ranks is not None]
    params, parts, owners = [], [], []
    for alike in group_alike(spanning):
        for each, norms in zip(alike, norms_by_gradient(alike), strict=True):
            blocks, device = each.blocks, each.exp_avg_sq.device
            size = blocks.size(each.whole_params)
            params += each.whole_params
            parts += [blocks.total(norm.square()).to(device) / size for norm in norms]
            owners += [each] * len(norms)
    squares: dict[int, Tensor] = {}
    for owner, total in zip(owners, sum_over_ranks(params, parts), strict=True):
        known = squares.get(id(owner))
        squares[id(owner)] = total if known is None else known + total
    for each in spanning:
        assert each.norms_over_ranks is not None
        torch.sqrt(squares[id(each)], out=each.norms_over_ranks)


def norms_by_gradient(inputs: Sequence[StepInputs]) -> list[list[Tensor]]:
    """Compute the norms of the blocks of every gradient of every set, each (local blocks,).

    On a GPU, one call does so for all gradients that lie in one block.
    """
    if not inputs:
        return []
    v = inputs[0].exp_avg_sq
    if v.is_cpu:
        return [[each.blocks.norms(g, v.dtype) for g in each.grads] for each in inputs]
    batch = [g for each in inputs if each.blocks.is_whole for g in each.grads]
    batched = iter(torch._foreach_norm(batch, 2, dtype=v.dtype) if batch else ())
    return [
        [
            next(batched).view(1) if each.blocks.is_whole else each.blocks.norms(g, v.dtype)
            for g in each.grads
        ]
        for each in inputs
    ]
