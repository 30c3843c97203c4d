"""Logarithms of a product added to sums, and their sums over runs of rows, in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _run_logs(product, log_sums, totals, counts, starts, BLOCK: tl.constexpr):
    run = tl.program_id(0)
    start = tl.load(starts + run)  # int64
    stop = tl.load(starts + run + 1)
    dtype = log_sums.dtype.element_ty
    total = tl.zeros((BLOCK,), dtype)
    count = tl.zeros((BLOCK,), dtype)
    for begin in range(start, stop, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        is_row = row < stop
        magnitude = tl.abs(tl.load(product + row, mask=is_row, other=0.0).to(dtype))
        is_positive = magnitude > 0.0
        log = tl.log(tl.where(is_positive, magnitude, 1.0))  # 0 where the row adds nothing
        total += log
        count += is_positive.to(dtype)
        before = tl.load(log_sums + row, mask=is_row, other=0.0)
        after = tl.where(is_positive, before + log, -float("inf"))
        tl.store(log_sums + row, after, mask=is_row)
    tl.store(totals + run, tl.sum(total, axis=0))
    tl.store(counts + run, tl.sum(count, axis=0))


def add_run_logs(
    log_sums: Tensor, totals: Tensor, counts: Tensor, product: Tensor, starts: Tensor
) -> None:
    """Do what ``functional.product_sums`` does in plain torch, one program for each run.

    Args:
        log_sums: The logarithms of |product| are added to it, in place; contiguous. Shape (d,).
        totals: The sum over the non-zero rows of each run is written here. Shape (R,).
        counts: Their number is written here. Shape (R,).
        product: Finite numbers. Shape (d,).
        starts: The first row of each run, and d. Shape (R + 1,), int64.
    """
    if not len(totals):
        return
    with torch.cuda.device(product.device) if product.is_cuda else torch.no_grad():
        _run_logs[(len(totals),)](
            product.contiguous(), log_sums, totals, counts, starts, BLOCK=_BLOCK, num_warps=8
        )
