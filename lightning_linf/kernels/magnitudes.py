"""Counts and sums of the magnitudes of many tensors, in one pass over their entries."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries of one program, 16 for each thread. It adds once to each bin in memory that it has found
# entries for, some 300 for gradients, and not once for each entry.
CHUNK = 4096
# Bins that a program counts in the memory of its own threads: those below the largest magnitude of
# its chunk, 16 octaves at 32 bins each, in which 99.99 % of normal numbers lie. Entries below them
# go to the GPU's memory one by one.
WINDOW = 512
NUM_SUMS = 5  # zeros, infinite, NaN, sum of |x|, sum of x^2
_ITEMS = 1024  # chunks whose sums are added up together
_NUM_WARPS = 8
_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def count_magnitudes(
    tensors: Sequence[Tensor], first_bin: int, num_bins: int, dropped_bits: int
) -> tuple[Tensor, Tensor]:
    """Count the entries of T tensors by the leading bits of their magnitudes, and add these up.

    The number of an entry's bin is ``|x|`` as a float64, read as an integer, without its last
    ``dropped_bits`` bits, minus ``first_bin``, from 0 to ``num_bins - 1``. The order of additions
    is that of the entries, so that sums are the same every time.

    Args:
        tensors: Of one device, with real floating entries.
        first_bin: Number of the bin that becomes 0; all below are added to it.
        num_bins: How many bins there are; all above are added to the last one.
        dropped_bits: How many of the 63 bits do not number the bin.

    Returns:
        Finite entries other than zero by bin, (T, num_bins) int64; and zeros, infinite entries,
        NaN, the sum of finite ``|x|`` and that of their squares, (5, T) float64.
    """
    known = (each if each.dtype in _DTYPES else each.to(torch.float32) for each in tensors)
    tensors = [each.contiguous() for each in known]
    device, num_tensors = tensors[0].device, len(tensors)
    histogram = torch.zeros(num_tensors, num_bins, dtype=torch.int64, device=device)
    sums = torch.empty(NUM_SUMS, num_tensors, dtype=torch.float64, device=device)
    # Work items, one a chunk, are numbered tensor by tensor, and tensors of one dtype follow one
    # another: they are one launch.
    rows = sorted(range(num_tensors), key=lambda row: str(tensors[row].dtype))
    items = [triton.cdiv(tensors[row].numel(), CHUNK) for row in rows]
    firsts = [sum(items[:place]) for place in range(num_tensors)]
    table = _on_device(
        [
            [tensors[row].data_ptr() for row in rows],
            [tensors[row].numel() for row in rows],
            rows,
            firsts,
            items,
        ],
        device,
    )
    num_items = sum(items)
    places = torch.repeat_interleave(table[4], output_size=num_items)  # in the table, of each item
    partial = torch.empty(NUM_SUMS, num_items, dtype=torch.float64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for dtype in dict.fromkeys(tensors[row].dtype for row in rows):
            chosen = [place for place, row in enumerate(rows) if tensors[row].dtype == dtype]
            begin, count = firsts[chosen[0]], sum(items[place] for place in chosen)
            if count:
                _count_chunk[(count,)](
                    table, places, histogram, partial, begin, num_items, num_tensors,
                    DTYPE=_DTYPES[dtype], FIRST=first_bin, BINS=num_bins, DROPPED=dropped_bits,
                    CHUNK=CHUNK, WINDOW=WINDOW, num_warps=_NUM_WARPS,
                )  # fmt: skip
        _add_chunks[(num_tensors, NUM_SUMS)](
            table, partial, sums, num_items, num_tensors, ITEMS=_ITEMS, num_warps=4
        )
    return histogram, sums


def _on_device(numbers: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Copy a table of integers to the device, without waiting for the copy."""
    table = torch.tensor(numbers, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit(do_not_specialize=["begin", "num_items", "num_tensors"])
def _count_chunk(
    table, places, histogram, partial, begin, num_items, num_tensors,
    DTYPE: tl.constexpr, FIRST: tl.constexpr, BINS: tl.constexpr, DROPPED: tl.constexpr,
    CHUNK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Count one chunk of one tensor, and write its sums; the program of work item ``begin + i``."""
    item = (tl.program_id(0) + begin).to(tl.int64)
    place = tl.load(places + item)
    start = tl.load(table + place).to(tl.pointer_type(DTYPE))
    size = tl.load(table + num_tensors + place)
    row = tl.load(table + 2 * num_tensors + place)
    chunk = item - tl.load(table + 3 * num_tensors + place)

    offsets = chunk * CHUNK + tl.arange(0, CHUNK)
    is_entry = offsets < size
    # Every dtype goes through float64, where subnormals of the others are normal numbers.
    magnitudes = tl.abs(tl.load(start + offsets, mask=is_entry, other=0.0).to(tl.float64))
    is_zero = is_entry & (magnitudes == 0.0)
    is_inf = magnitudes == float("inf")
    is_nan = magnitudes != magnitudes
    finite = tl.where(is_inf | is_nan, 0.0, magnitudes)
    tl.store(partial + item, tl.sum(is_zero.to(tl.int32), axis=0))
    tl.store(partial + num_items + item, tl.sum(is_inf.to(tl.int32), axis=0))
    tl.store(partial + 2 * num_items + item, tl.sum(is_nan.to(tl.int32), axis=0))
    tl.store(partial + 3 * num_items + item, tl.sum(finite, axis=0))
    tl.store(partial + 4 * num_items + item, tl.sum(finite * finite, axis=0))

    is_counted = finite > 0.0
    bins = (finite.to(tl.int64, bitcast=True) >> DROPPED).to(tl.int32) - FIRST
    bins = tl.minimum(tl.maximum(bins, 0), BINS - 1)
    # Slot 0 of the window takes what is not counted in it.
    lowest = tl.max(tl.where(is_counted, bins, 0), axis=0) - (WINDOW - 1)
    slots = bins - lowest
    counts = tl.histogram(tl.where(is_counted & (slots > 0), slots, 0), WINDOW)
    slot = tl.arange(0, WINDOW)
    is_used = (slot > 0) & (counts > 0)
    of_row = histogram + row * BINS
    tl.atomic_add(of_row + lowest + slot, counts.to(tl.int64), mask=is_used, sem="relaxed")
    ones = tl.full([CHUNK], 1, tl.int64)
    tl.atomic_add(of_row + bins, ones, mask=is_counted & (slots <= 0), sem="relaxed")


@triton.jit(do_not_specialize=["num_items", "num_tensors"])
def _add_chunks(table, partial, sums, num_items, num_tensors, ITEMS: tl.constexpr):
    """Add up one of the sums over the chunks of one tensor."""
    place, column = tl.program_id(0), tl.program_id(1)
    row = tl.load(table + 2 * num_tensors + place)
    first = tl.load(table + 3 * num_tensors + place)
    count = tl.load(table + 4 * num_tensors + place)
    of_column = partial + column.to(tl.int64) * num_items + first
    total = tl.zeros([ITEMS], tl.float64)
    for start in range(0, count, ITEMS):
        offsets = start + tl.arange(0, ITEMS)
        total += tl.load(of_column + offsets, mask=offsets < count, other=0.0)
    tl.store(sums + column * num_tensors + row, tl.sum(total, axis=0))
