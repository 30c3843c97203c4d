"""Gradient heterogeneity over a stream of gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_linf.functional.heterogeneity import Heterogeneity, each_and_whole
from lightning_linf.functional.heterogeneity_sums import (
    HeterogeneitySums,
    heterogeneity_update,
)


class GradientHeterogeneity(Metric):
    """:func:`~lightning_linf.functional.heterogeneity` of T tensors, over several updates.

    Several updates, or ranks that hold different shards, count as one longer gradient: all states
    are sums. ``compute`` gives the statistics per tensor (shapes (T,)) and those of all entries
    together. With T = 1 torchmetrics turns results of shape (1,) into ().

    Args:
        num_tensors: Number T of gradients given to each ``update``.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_tensors`` is below 1, or ``update`` gets another number.

    Example:
        >>> metric = GradientHeterogeneity(num_tensors=2)
        >>> metric.update([torch.ones(3), torch.tensor([1.0, 0.0])])
        >>> per_tensor, overall = metric.compute()
        >>> per_tensor.zero_fraction.tolist(), round(float(overall.density), 3)
        ([0.0, 0.5], 0.8)
    """

    full_state_update = False
    histogram: Tensor
    num_zero: Tensor
    num_inf: Tensor
    num_nan: Tensor
    abs_sum: Tensor
    square_sum: Tensor

    def __init__(self, num_tensors: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_tensors < 1:
            raise ValueError(
                f"GradientHeterogeneity: expected `num_tensors` >= 1, got {num_tensors}."
            )
        self.num_tensors = num_tensors
        nothing = heterogeneity_update([torch.zeros(0)] * num_tensors)
        for name, value in zip(nothing._fields, nothing, strict=True):
            self.add_state(name, value, dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> "GradientHeterogeneity":
        """Leave the dtype of the states as it is: sums of many entries need float64."""
        return self

    def update(self, gradients: Sequence[Tensor]) -> None:
        """Add the entries of T gradients of any shapes."""
        if len(gradients) != self.num_tensors:
            raise ValueError(
                f"GradientHeterogeneity: expected {self.num_tensors} gradients, "
                f"got {len(gradients)}. Give them for the same tensors every time."
            )
        sums = heterogeneity_update(gradients)
        for name, value in zip(sums._fields, sums, strict=True):
            state = getattr(self, name)
            setattr(self, name, state + value.to(state.device))

    def compute(self) -> tuple[Heterogeneity, Heterogeneity]:
        """Statistics per tensor, and of all entries together."""
        sums = HeterogeneitySums(*(getattr(self, name) for name in HeterogeneitySums._fields))
        return each_and_whole(sums)
