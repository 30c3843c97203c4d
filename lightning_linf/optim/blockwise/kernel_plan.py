"""Which launches a blockwise step by kernels consists of."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_linf.kernels.block_moments import shape_for
from lightning_linf.kernels.block_update import Dtypes
from lightning_linf.kernels.tiles import WHOLE, Tiling, is_aligned, tiling
from lightning_linf.optim.blockwise.slices import Slices
from lightning_linf.optim.blockwise.step_inputs import StepInputs


@dataclass
class TensorLaunch:
    """Tensors that one launch of each pass takes."""

    tiles: Tiling
    dtypes: Dtypes
    is_aligned: bool
    has_squares: bool  # else norms come from all ranks
    tensors: list[tuple[int, int]] = field(default_factory=list)  # set, and place in it
    places: list[int] = field(default_factory=list)  # of each among the tensors of all sets
    num_items: list[int] = field(default_factory=list)
    square_fields: list[int] = field(default_factory=list)
    param_fields: list[int] = field(default_factory=list)


@dataclass
class SetLaunch:
    """Block sets whose second moments one launch updates."""

    shape: tuple[int, int]
    sets: list[int] = field(default_factory=list)
    num_items: list[int] = field(default_factory=list)
    fields: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """All launches, and how many numbers one pass hands to the next."""

    tensors: dict[Hashable, TensorLaunch] = field(default_factory=dict)
    sets: dict[Hashable, SetLaunch] = field(default_factory=dict)
    first_partials: list[int] = field(default_factory=list)  # of each set
    num_partials: int = 0
    num_denominators: int = 0


def make_plan(inputs: Sequence[StepInputs], counts: Sequence[float | None]) -> Plan:
    """Plan the steps of tensors that lie where they lie now.

    Args:
        inputs: Block sets that are alike in device, dtype and whether each entry is a block.
        counts: Numbers of updates, of all sets and then of all their tensors; None where kernels
            read them. Tensors share a launch if these are the same.
    """
    plan, place = Plan(), len(inputs)
    for number, each in enumerate(inputs):
        plan.first_partials.append(plan.num_partials)
        for index, g in enumerate(each.grads):
            own_counts = counts[place], counts[number]
            _add_tensor(plan, each, g, (number, index), place - len(inputs), own_counts)
            place += 1
        if not each.blocks.is_identity:
            _add_set(plan, each, number, counts[number])
    return plan


def _add_tensor(
    plan: Plan,
    inputs: StepInputs,
    g: Tensor,
    tensor: tuple[int, int],
    place: int,
    counts: tuple[float | None, float | None],  # of the tensor, and of its set
) -> None:
    """Plan both passes over a tensor."""
    blocks, index = inputs.blocks, tensor[1]
    p, m = inputs.params[index], inputs.exp_avgs[index]
    parts = _slices(inputs, p)
    slabs, rows, cols = parts.matrix
    is_flat = slabs == rows == 1
    tiles = WHOLE if is_flat else tiling(parts.is_across, cols)
    dtypes = Dtypes(p.dtype, g.dtype, m.dtype)
    addresses = [p.data_ptr(), m.data_ptr()]
    if blocks.is_identity:
        addresses.append(inputs.exp_avg_sq.data_ptr())
    aligned = is_aligned(cols, addresses)
    has_squares = inputs.norms_over_ranks is None and not blocks.is_identity
    key: Hashable = (tiles, dtypes, aligned, has_squares, id(inputs.groups[index]), counts)
    launch = plan.tensors.setdefault(key, TensorLaunch(tiles, dtypes, aligned, has_squares))
    first = sum(launch.num_items)
    launch.tensors.append(tensor)
    launch.places.append(place)
    launch.num_items.append(tiles.num_items(slabs, rows, cols))
    addresses = [p.data_ptr(), m.data_ptr(), inputs.steps[index].data_ptr()]
    if blocks.is_identity:
        v, v_step = inputs.exp_avg_sq.data_ptr(), inputs.exp_avg_sq_step.data_ptr()
        launch.param_fields += (first, rows, cols, *addresses, v, v_step)
        return
    labels = 0 if blocks.labels is None else blocks.labels.data_ptr()
    places = plan.num_denominators, parts.width, labels
    launch.param_fields += (first, rows, cols, *addresses, *places)
    if has_squares:
        launch.square_fields += (first, rows, cols, plan.num_partials)
        num_splits = tiles.num_splits(rows, cols)
        plan.num_partials += num_splits * slabs * (cols if tiles.is_across else rows)


def _add_set(plan: Plan, inputs: StepInputs, number: int, count: float | None) -> None:
    """Plan the second moments of a set, after the partial sums of all its tensors."""
    blocks, v = inputs.blocks, inputs.exp_avg_sq
    first = plan.first_partials[number]
    if inputs.norms_over_ranks is not None:
        num_blocks = v.numel()
        splits, cols, width = 1, 1, 1
        plan.num_partials += num_blocks
    elif blocks.is_whole:
        num_blocks, splits, cols, width = 1, plan.num_partials - first, 1, 1
    else:
        parts = _slices(inputs, inputs.params[0])
        _, rows, cols = parts.matrix
        splits = tiling(parts.is_across, cols).num_splits(rows, cols)
        num_blocks = v.numel()
        cols, width = (cols, parts.width) if parts.is_across else (1, 1)
    shape = shape_for(splits * width)
    launch = plan.sets.setdefault((shape, id(inputs.options), count), SetLaunch(shape))
    addresses = v.data_ptr(), inputs.exp_avg_sq_step.data_ptr()
    launch.fields += (
        sum(launch.num_items), *addresses, num_blocks, round(inputs.size), first, splits, cols,
        width, plan.num_denominators,
    )  # fmt: skip
    launch.sets.append(number)
    launch.num_items.append(-(-num_blocks // shape[0]))
    plan.num_denominators += num_blocks


def _slices(inputs: StepInputs, p: Tensor) -> Slices:
    """Give the slices of one of the tensors; an entire tensor is one, whatever its order."""
    if inputs.blocks.is_whole or inputs.blocks.is_identity:
        return Slices(1, p.numel(), 1, 1)
    assert inputs.blocks.slices is not None  # else it is not served
    return inputs.blocks.slices
