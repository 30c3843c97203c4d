"""Closures that an inner optimizer evaluates, and the hooks around the steps of all optimizers."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

# The public functions add hooks; none lists them or turns them off for a while.
from torch.optim import optimizer as torch_optimizer

from lightning_linf.optim.reparameterized.mapped_tensors import MappedTensors

StepHooks = tuple[Any, Any]  # those before a step, those after it
_NAMES = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


def closure_in_phi(
    closure: Callable[[], Any], mapped_tensors: Sequence[MappedTensors], hooks: StepHooks
) -> Callable[[], Any]:
    """Make a closure that the inner optimizer may call repeatedly, at several points phi.

    While the user's ``closure`` runs, ``hooks`` are in place, as it may step another optimizer.
    """
    is_first = True

    def evaluate() -> Any:
        nonlocal is_first
        with torch.no_grad():
            for mapped in () if is_first else mapped_tensors:
                mapped.write_weights(is_last=False)
        is_first = False
        with torch.enable_grad(), global_step_hooks(hooks):
            loss = closure()
        with torch.no_grad():
            for mapped in mapped_tensors:
                mapped.read_gradients()
        return loss

    return evaluate


@contextmanager
def global_step_hooks(chosen: StepHooks | None = None) -> Iterator[StepHooks]:
    """Set the hooks around the steps of all optimizers, by default none, and yield the former."""
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
