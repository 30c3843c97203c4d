"""Hooks that torch calls at the steps of all optimizers."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Public names register hooks there, but none tells which there are, or leaves them out.
from torch.optim import optimizer as torch_optimizer

StepHooks = tuple[Any, Any]  # before and after a step
_NAMES = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


@contextmanager
def global_step_hooks(chosen: StepHooks | None = None) -> Iterator[StepHooks]:
    """Have other hooks for a while, or none. Gives those that there were."""
    former = tuple(getattr(torch_optimizer, name) for name in _NAMES)
    if chosen is None and not any(former):
        yield former
        return
    _set(chosen or (OrderedDict(), OrderedDict()))
    try:
        yield former
    finally:
        _set(former)


def _set(hooks: StepHooks) -> None:
    for name, each in zip(_NAMES, hooks, strict=True):
        setattr(torch_optimizer, name, each)
