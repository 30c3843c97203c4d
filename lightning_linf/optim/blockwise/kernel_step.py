"""The step of blockwise Adam by kernels: launches that each take many tensors.

Gradients are read once for their norms; then gradients, moments and parameters are read, and the
latter two written: six numbers for each entry, where Adam moves seven. If every entry is a block,
one pass moves seven. Sums are of a fixed order, so that a step has the same bits every time.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_linf.kernels.block_moments import MomentOptions, update_moments
from lightning_linf.kernels.block_squares import add_squares
from lightning_linf.kernels.block_update import ParamOptions, update_coordinates, update_params
from lightning_linf.kernels.tensor_table import owners_of_items, table_of
from lightning_linf.optim.blockwise.kernel_plan import Plan, plan_for
from lightning_linf.optim.blockwise.step_inputs import StepInputs

Counts = list[float | None]  # numbers of updates, None where kernels read them


def kernel_step(inputs: Sequence[StepInputs]) -> None:
    """Make the step by kernels."""
    alike = defaultdict(list)
    for each in inputs:
        v, is_read = each.exp_avg_sq, counts_are_read(each)
        alike[v.device, v.dtype, is_read, each.blocks.is_identity].append(each)
    for (_, _, is_read, _), members in alike.items():
        counts = [each.exp_avg_sq_step for each in members]
        counts += [step for each in members for step in each.steps]
        if is_read:
            torch._foreach_add_(counts, 1)
            _launch(members, [None] * len(counts))
        else:  # written once the kernels run
            _launch(members, [count + 1 for count in torch.stack(counts).tolist()])
            torch._foreach_add_(counts, torch.tensor(1.0))


def counts_are_read(inputs: StepInputs) -> bool:
    """Say whether kernels read the counts, so that a captured step goes on counting."""
    return bool(inputs.options["capturable"])


def _launch(inputs: Sequence[StepInputs], counts: Counts) -> None:
    plan, v = plan_for(inputs, counts), inputs[0].exp_avg_sq
    grads = [
        _as_stored(g, p) for each in inputs for p, g in zip(each.params, each.grads, strict=True)
    ]
    addresses = [g.data_ptr() for g in grads]
    partials, denominators = v.new_empty(plan.num_partials), v.new_empty(plan.num_denominators)
    tables = []
    for launch in plan.tensors.values():
        chosen = [addresses[place] for place in launch.places]
        is_aligned = launch.is_aligned and not any(address % 16 for address in chosen)
        owners = owners_of_items(launch.num_items, v.device)
        tables.append((launch, table_of(chosen, v.device), owners, is_aligned))
    for launch, table, owners, is_aligned in tables:
        if launch.has_squares and len(owners):
            add_squares(
                table, table_of(launch.square_fields, v.device), owners, partials, launch.tiles,
                launch.dtypes.g, is_aligned,
            )  # fmt: skip
    _update_moments(plan, inputs, counts, partials, denominators)
    for launch, table, owners, is_aligned in tables:
        if not len(owners):
            continue
        number, index = launch.tensors[0]
        first, count = inputs[number], counts[len(inputs) + launch.places[0]]
        options = _param_options(first.groups[index], count, v.device)
        fields = table_of(launch.param_fields, v.device)
        tiles, dtypes = launch.tiles, launch.dtypes
        if first.blocks.is_identity:
            moments = _moment_options(first, counts[number])
            update_coordinates(
                table, fields, owners, v.dtype, tiles, dtypes, is_aligned, options, moments
            )
        else:
            update_params(table, fields, owners, denominators, tiles, dtypes, is_aligned, options)


def _update_moments(
    plan: Plan,
    inputs: Sequence[StepInputs],
    counts: Counts,
    partials: Tensor,
    denominators: Tensor,
) -> None:
    for each, start in zip(inputs, plan.first_partials, strict=True):
        norms = each.norms_over_ranks
        if norms is not None:
            torch.square(norms, out=partials[start : start + len(norms)])
    for launch in plan.sets.values():
        device, number = partials.device, launch.sets[0]
        update_moments(
            table_of(launch.fields, device), owners_of_items(launch.num_items, device), partials,
            denominators, launch.shape, _moment_options(inputs[number], counts[number]),
        )  # fmt: skip


def _moment_options(inputs: StepInputs, count: float | None) -> MomentOptions:
    options, beta2 = inputs.options, float(inputs.options["betas"][1])
    return MomentOptions(
        beta2, _log(beta2), float(options["eps"]), options["eps_inside"], _correction(beta2, count)
    )


def _param_options(
    group: dict[str, Any], count: float | None, device: torch.device
) -> ParamOptions:
    lr, beta1 = group["lr"], float(group["betas"][0])
    if isinstance(lr, Tensor) and lr.device != device:
        lr = float(lr)
    return ParamOptions(
        lr, float(group["weight_decay"]), beta1, _log(beta1), group["maximize"],
        _correction(beta1, count),
    )  # fmt: skip


def _correction(beta: float, count: float | None) -> float | None:
    return None if count is None else 1 - beta**count


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


def _as_stored(g: Tensor, p: Tensor) -> Tensor:
    """Give a gradient in the order of its parameter's entries in memory."""
    if g.stride() == p.stride() or (g.is_contiguous() and p.is_contiguous()):
        return g
    return torch.empty_like(p, dtype=g.dtype).copy_(g)
