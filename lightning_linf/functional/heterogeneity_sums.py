"""Counts and sums over a gradient's entries, from which its heterogeneity is computed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.vector_shards import shards_of_vectors
from lightning_linf.kernels import runs_kernels

# The number of a histogram bin is the leading bits of |g| as a float64: its exponent and 5 bits of
# its mantissa. So 1.0 to 1.03125 is one bin, and 2.0 to 2.0625 the 32nd after it. Bins are exact,
# need no logarithm, cover all float32 down to its subnormals, and are at most 1/32 of their value
# wide (0.0134 in log10). Values of a float64 beyond that range go to the first or the last bin.
MANTISSA_BITS = 5
DROPPED_BITS = 52 - MANTISSA_BITS
FIRST_BIN = (1023 - 149) << MANTISSA_BITS  # of 2^-149, the smallest; 1023 is the exponent's bias
NUM_BINS = (149 + 128) << MANTISSA_BITS
# Entries that are counted together, in some ten passes over as many float64 numbers: few enough for
# a CPU's cache, and on a GPU enough to keep it busy.
_ENTRIES_TOGETHER, _ENTRIES_TOGETHER_ON_GPU = 2**18, 2**24


class HeterogeneitySums(NamedTuple):
    """Counts and sums over the entries of T tensors; those of shards add up to those of all."""

    histogram: Tensor  # (T, NUM_BINS) int64: finite entries by |g|, zeros in bin 0
    num_zero: Tensor  # (T,) int64
    num_inf: Tensor  # (T,) int64
    num_nan: Tensor  # (T,) int64
    abs_sum: Tensor  # (T,) sum of |g| over finite entries
    square_sum: Tensor  # (T,) sum of g^2 over finite entries


def heterogeneity_update(tensors: Sequence[Tensor]) -> HeterogeneitySums:
    """Count and sum the entries of each tensor. Any shapes and real floating dtypes, one device.

    Where Triton's kernels run, they read the tensors once, all in one launch, and the host does not
    wait for them.
    """
    if not tensors:
        raise ValueError("heterogeneity: expected at least one tensor, got none.")
    device = tensors[0].device
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(
                f"heterogeneity: expected real floating tensors, got {tensor.dtype}. "
                "View complex gradients as real first (torch.view_as_real)."
            )
        if tensor.device != device:
            raise ValueError(
                f"heterogeneity: expected tensors of one device, got {device} and {tensor.device}. "
                "Update for each device and move the sums to one."
            )
    flat = [_flat(tensor) for tensor in tensors]
    return _sums_by_kernels(flat) if runs_kernels(device) else _sums(flat)


def over_shards(sums: HeterogeneitySums) -> HeterogeneitySums:
    """Add up the sums of all ranks where vectors are shards, in two messages."""
    shards = shards_of_vectors()
    if shards is None:
        return sums
    counts = torch.cat([sums.histogram, torch.stack(sums[1:4], dim=1)], dim=1)
    counts = shards.sum_over_ranks(counts)
    totals = shards.sum_over_ranks(torch.stack(sums[4:]))
    return HeterogeneitySums(counts[:, :NUM_BINS], *counts[:, NUM_BINS:].T, *totals)


def merge_tensors(sums: HeterogeneitySums) -> HeterogeneitySums:
    """Add the sums of T tensors up to those of one vector that holds them all."""
    return HeterogeneitySums(*(value.sum(dim=0) for value in sums))


def _flat(tensor: Tensor) -> Tensor:
    """Give the entries in the order of memory, which saves most strided tensors a copy."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).reshape(-1)


def _sums_by_kernels(tensors: Sequence[Tensor]) -> HeterogeneitySums:
    from lightning_linf.kernels.magnitudes import count_magnitudes  # needs Triton

    histogram, sums = count_magnitudes(tensors, FIRST_BIN, NUM_BINS, DROPPED_BITS)
    num_zero, num_inf, num_nan = sums[:3].to(torch.int64)  # whole numbers below 2^53
    histogram[:, 0] += num_zero
    return HeterogeneitySums(histogram, num_zero, num_inf, num_nan, sums[3], sums[4])


def _sums(tensors: Sequence[Tensor]) -> HeterogeneitySums:
    """Count and sum vectors, a group of neighbours or a piece of one at a time."""
    # MPS has no float64.
    device = torch.device("cpu") if tensors[0].device.type == "mps" else tensors[0].device
    num_tensors = len(tensors)
    sums = HeterogeneitySums(
        torch.zeros(num_tensors, NUM_BINS, dtype=torch.int64, device=device),
        *torch.zeros(3, num_tensors, dtype=torch.int64, device=device),
        *torch.zeros(2, num_tensors, dtype=torch.float64, device=device),
    )
    together = _ENTRIES_TOGETHER if device.type == "cpu" else _ENTRIES_TOGETHER_ON_GPU
    size = min(together, sum(tensor.numel() for tensor in tensors))
    # Used again for each group: memory that is new for each operation takes longer than the work.
    values = torch.empty(size, dtype=torch.float64, device=device)
    slots = torch.empty(size, dtype=torch.int64, device=device)
    for first, group in _groups(tensors, together):
        last = first + len(group)
        _add(HeterogeneitySums(*(each[first:last] for each in sums)), group, values, slots)
    return sums


def _groups(tensors: Sequence[Tensor], together: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Put neighbouring small tensors into groups, and cut large ones into groups of one piece.

    Yields the number of a group's first tensor with it.
    """
    group: list[Tensor] = []
    size = 0
    for number, tensor in enumerate(tensors):
        if group and size + tensor.numel() > together:
            yield number - len(group), group
            group, size = [], 0
        if tensor.numel() > together:
            yield from ((number, [piece]) for piece in torch.split(tensor, together))
        else:
            group.append(tensor)
            size += tensor.numel()
    if group:
        yield len(tensors) - len(group), group


def _add(sums: HeterogeneitySums, tensors: list[Tensor], values: Tensor, slots: Tensor) -> None:
    """Add, in place, what these tensors count and sum up to; the last two are written over."""
    sizes = [tensor.numel() for tensor in tensors]
    values, slots = values[: sum(sizes)], slots[: sum(sizes)]
    parts = values.split_with_sizes(sizes)
    for part, tensor in zip(parts, tensors, strict=True):
        part.copy_(tensor)
    values.abs_()
    # Slot 0 is for what lies below all bins, such as zeros, the last one for what lies above.
    torch.bitwise_right_shift(values.view(torch.int64), DROPPED_BITS, out=slots)
    slots.sub_(FIRST_BIN - 1).clamp_(0, NUM_BINS + 1)
    if len(tensors) > 1:  # each tensor has its own slots, one tensor after the other
        rows = torch.arange(len(sizes), device=slots.device) * (NUM_BINS + 2)
        counts = torch.tensor(sizes, device=slots.device)
        slots += rows.repeat_interleave(counts, output_size=len(slots))
    counted = torch.bincount(slots, minlength=len(sizes) * (NUM_BINS + 2))
    below, inside, above = counted.view(len(sizes), -1).split_with_sizes([1, NUM_BINS, 1], 1)
    sums.histogram.add_(inside)
    sums.histogram[:, 0] += below[:, 0]
    for row, (num_below, num_above) in enumerate(torch.cat([below, above], dim=1).tolist()):
        part = parts[row]
        if num_below:
            sums.num_zero[row] += sizes[row] - part.count_nonzero()
        if num_above:
            is_inf, is_nan = part.isinf(), part.isnan()
            part.masked_fill_(is_inf | is_nan, 0.0)
            num_inf, num_nan = is_inf.sum(), is_nan.sum()
            sums.num_inf[row] += num_inf
            sums.num_nan[row] += num_nan
            sums.histogram[row, -1] += num_above - num_inf - num_nan
    sums.abs_sum.add_(torch.stack([part.sum() for part in parts]))
    values.square_()
    sums.square_sum.add_(torch.stack([part.sum() for part in parts]))
