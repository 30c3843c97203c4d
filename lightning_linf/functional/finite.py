"""The check that several functions make of gradients and of products with the Hessian."""

import torch
from torch import Tensor

from lightning_linf.functional.vector_shards import max_over_shards, shards_of_vectors


def all_finite(values: Tensor) -> bool | Tensor:
    """Say whether all entries are finite, in one pass and without a temporary vector.

    Of vectors that are shards, all ranks are told the same.
    """
    if shards_of_vectors() is None:
        return _all_finite(values)
    is_wrong = torch.as_tensor(_all_finite(values), device=values.device).logical_not()
    return max_over_shards(is_wrong.to(torch.float32)) == 0


def _all_finite(values: Tensor) -> bool | Tensor:
    if not values.numel():
        return True
    return torch.stack(torch.aminmax(values)).isfinite().all()  # a NaN comes out as both


def require_finite(is_finite: bool | Tensor, function: str, expected: str, where: str = "") -> None:
    """Raise a ValueError unless all entries are finite.

    Args:
        is_finite: Whether they are.
        function: Public name of the function that checks.
        expected: What it expected, such as "finite products".
        where: What the message says after "inf or NaN", such as " at product 3".
    """
    if not is_finite:
        raise ValueError(
            f"{function}: expected {expected}, got inf or NaN{where}. Look at the loss and the "
            "parameters at this point."
        )
