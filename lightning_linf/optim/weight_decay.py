"""Whether weight decay shrinks the weights or is a part of the gradient."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Tell whether the weight decay of a parameter group is decoupled, as AdamW's.

    If neither the class nor the group says so, it is not. ``optimizer`` is the one that steps: the
    inner one of a :class:`~lightning_linf.optim.Reparameterized`.
    """
    is_adamw = isinstance(optimizer, torch.optim.AdamW)  # in whose groups older torch does not say
    of_class = getattr(optimizer, "decoupled_weight_decay", is_adamw)
    return bool(of_class or group.get("decoupled_weight_decay", False))
