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
from lightning_linf.optim.blockwise.counts import Counts
from lightning_linf.optim.blockwise.kernel_plan import Plan, make_plan
from lightning_linf.optim.blockwise.step_inputs import StepInputs

Numbers = list[float | None]  # of updates, None where kernels read them


class KernelStep:
    """The step by kernels of block sets."""

    def __init__(self, inputs: Sequence[StepInputs]) -> None:
        alike = defaultdict(list)
        for each in inputs:
            v, is_read = each.exp_avg_sq, bool(each.options["capturable"])
            alike[v.device, v.dtype, is_read, each.blocks.is_identity].append(each)
        self._parts = [AlikeStep(members) for members in alike.values()]

    def __call__(self) -> None:
        """Make the step."""
        for part in self._parts:
            part()


class AlikeStep:
    """The step of block sets alike in device, dtype and whether each entry is a block."""

    def __init__(self, inputs: list[StepInputs]) -> None:
        self._inputs, self._counts = inputs, Counts(inputs)
        self._params = [p for each in inputs for p in each.params]
        self._is_sharded = any(each.blocks.is_sharded for each in inputs)
        self._reordered = [
            place
            for place, (p, g) in enumerate(zip(self._params, self._grads(), strict=True))
            if not (g.stride() == p.stride() or (g.is_contiguous() and p.is_contiguous()))
        ]
        # Read by kernels, so that a captured step goes on counting.
        self._is_counted_there = bool(inputs[0].options["capturable"])
        self._plan: Plan | None = None
        self._offsets: Numbers = []

    def __call__(self) -> None:
        """Make the step."""
        if self._is_counted_there:
            torch._foreach_add_(self._counts.tensors, 1)
            self._launch([None] * len(self._counts.tensors))
        else:  # written once the kernels run
            self._launch([*self._counts.incremented()])
            self._counts.write()

    def _launch(self, counts: Numbers) -> None:
        inputs, device = self._inputs, self._inputs[0].exp_avg_sq.device
        plan, tables = self._plan_for(counts), []
        partials, denominators = (
            inputs[0].exp_avg_sq.new_empty(count)
            for count in (plan.num_partials, plan.num_denominators)
        )
        grads = self._grads()
        for place in self._reordered:  # in the order of its parameter's entries in memory
            g = grads[place]
            grads[place] = torch.empty_like(self._params[place], dtype=g.dtype).copy_(g)
        addresses = [g.data_ptr() for g in grads]
        for launch in plan.tensors.values():
            chosen = [addresses[place] for place in launch.places]
            is_aligned = launch.is_aligned and not any([address % 16 for address in chosen])
            owners = owners_of_items(launch.num_items, device)
            if len(owners):
                tables.append((launch, table_of(chosen, device), owners, is_aligned))
        for launch, table, owners, is_aligned in tables:
            if launch.has_squares:
                add_squares(
                    table, table_of(launch.square_fields, device), owners, partials, launch.tiles,
                    launch.dtypes.g, is_aligned,
                )  # fmt: skip
        _update_moments(plan, inputs, counts, partials, denominators)
        for launch, table, owners, is_aligned in tables:
            number, index = launch.tensors[0]
            first, count = inputs[number], counts[len(inputs) + launch.places[0]]
            options = _param_options(first.groups[index], count, device)
            fields = table_of(launch.param_fields, device)
            tiles, dtypes = launch.tiles, launch.dtypes
            if first.blocks.is_identity:
                moments = _moment_options(first, counts[number])
                update_coordinates(
                    table, fields, owners, first.exp_avg_sq.dtype, tiles, dtypes, is_aligned,
                    options, moments,
                )  # fmt: skip
            else:
                update_params(
                    table, fields, owners, denominators, tiles, dtypes, is_aligned, options
                )

    def _grads(self) -> list[Tensor]:
        if self._is_sharded:
            return [g for each in self._inputs for g in each.grads]
        return [g for p in self._params if (g := p.grad) is not None]

    def _plan_for(self, counts: Numbers) -> Plan:
        """Plan a step, or find the plan of the last one if counts differ as they did there."""
        first = counts[0] or 0
        offsets = [None if count is None else count - first for count in counts]
        if self._plan is None or offsets != self._offsets:
            self._plan, self._offsets = make_plan(self._inputs, offsets), offsets
        return self._plan


def _update_moments(
    plan: Plan,
    inputs: Sequence[StepInputs],
    counts: Numbers,
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
