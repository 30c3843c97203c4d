"""Checks of what an optimizer is given: hyperparameters, and the layout of gradients."""

import math
from typing import NoReturn

from torch import Tensor


def check_nonnegative(optimizer: str, name: str, value: object) -> None:
    """Raise a ValueError unless a hyperparameter is a finite number >= 0, or a tensor of one."""
    is_number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
    if not (is_number and 0 <= float(value) < math.inf):  # type: ignore[arg-type]  # is a number
        raise ValueError(
            f"{optimizer}: expected `{name}` to be a finite number >= 0, got {value!r}. "
            f"{'Give a float, or a tensor of shape ().' if name == 'lr' else 'Give a float.'}"
        )


def check_decay(optimizer: str, name: str, value: object) -> None:
    """Raise a ValueError unless the decay of a running mean is a number in [0, 1)."""
    if not (isinstance(value, (int, float)) and 0 <= value < 1):
        raise ValueError(
            f"{optimizer}: expected `{name}` to be a number in [0, 1), got {value!r}. Give a float."
        )


def check_betas(optimizer: str, betas: object) -> None:
    """Raise a ValueError unless ``betas`` are two numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(
            f"{optimizer}: expected two `betas`, got {betas!r}. Give the decay of the mean "
            "gradient and that of the mean square."
        )
    for index, beta in enumerate(betas):
        check_decay(optimizer, f"betas[{index}]", beta)


def refuse_sparse(optimizer: str, grad: Tensor) -> NoReturn:
    """Raise the ValueError for a sparse gradient."""
    raise ValueError(
        f"{optimizer}: expected dense gradients, got a sparse one of shape {tuple(grad.shape)}. "
        "Use sparse=False in its embedding, or SparseAdam for it."
    )
