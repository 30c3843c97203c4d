"""What is trained, and how: for the settings of a report."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

# Of an optimizer's hyperparameters, those that say what kind of steps it makes.
_SHOWN = ("lr", "momentum", "betas", "weight_decay")


def training_settings(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, str]:
    """Name the model and its optimizers, with the present time, in UTC."""
    settings = {
        "date": datetime.now(UTC).isoformat(sep=" ", timespec="minutes"),
        "model": type(module).__name__,
    }
    if optimizers:
        settings["optimizer"] = ", ".join(map(_described, optimizers))
    return settings


def _described(optimizer: Optimizer) -> str:
    """Write the class and the hyperparameters of the first group, as in "AdamW(lr=0.001)"."""
    group: Mapping[str, Any] = optimizer.param_groups[0]
    named = [name for name in _SHOWN if name == "lr" or group.get(name)]  # a zero has no effect
    shown = [f"{name}={_number(group[name])}" for name in named]
    several = len(optimizer.param_groups)
    of_groups = f", first of {several} groups" if several > 1 else ""
    return f"{type(optimizer).__name__}({', '.join(shown)}{of_groups})"


def _number(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_number, value))})"
    return f"{float(value):g}" if isinstance(value, (Real, Tensor)) else str(value)
