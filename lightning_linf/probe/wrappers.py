"""What Fabric, Accelerate and DDP put around a module and an optimizer, and what is inside."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer

_MODULES = {"_FabricModule", "DistributedDataParallel", "DataParallel"}
_OPTIMIZERS = {"_FabricOptimizer", "AcceleratedOptimizer"}


def unwrap(caller: str, module: nn.Module) -> nn.Module:
    """Give the module inside of what Fabric, Accelerate or DDP made of it, or this one.

    The wrappers add autocast and synchronisation, which a probe does without, and rename the
    parameters.

    Raises:
        ValueError: If ``module`` is not an nn.Module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{caller}: expected `module` to be an nn.Module, got {type(module).__name__}."
        )
    while type(module).__name__ in _MODULES:  # by name: Fabric's is in two packages
        inner = module.module
        assert isinstance(inner, nn.Module)
        module = inner
    return module


def unwrap_optimizer(caller: str, optimizer: Optimizer) -> Optimizer:
    """Give the optimizer inside of what Fabric or Accelerate made of it, or this one.

    Raises:
        ValueError: If it is no optimizer.
    """
    while any(kind.__name__ in _OPTIMIZERS for kind in type(optimizer).__mro__):
        inner = optimizer.optimizer  # type: ignore[attr-defined]  # of both wrappers
        assert isinstance(inner, Optimizer)
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"{caller}: expected `optimizer` to be a torch.optim.Optimizer, got {optimizer!r}."
        )
    return optimizer


@contextmanager
def bare_forward(module: nn.Module) -> Iterator[None]:
    """Take off the autocast that Accelerate's mixed precision has put around ``module.forward``.

    ``accelerator.unwrap_model`` would take it off for good. Other modules stay as they are.
    """
    attributes = vars(module)
    wrapped, original = attributes.get("forward"), attributes.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    attributes["forward"] = original
    try:
        yield
    finally:
        attributes["forward"] = wrapped
