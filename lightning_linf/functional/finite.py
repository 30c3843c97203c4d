"""The check that several functions make of gradients and of products with the Hessian."""

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool | Tensor:
    """Say whether all entries are finite, in one pass and without a temporary vector."""
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
