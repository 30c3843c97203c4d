"""The module inside the wrapper that Fabric puts around it."""

from torch import nn


def unwrapped(caller: str, module: nn.Module) -> nn.Module:
    """Give the module that ``Fabric.setup`` was given, or this one.

    The wrapper adds autocast and synchronisation to it, which a probe does without, and other names
    of parameters.

    Raises:
        ValueError: If it is no module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{caller}: expected `module` to be an nn.Module, got {type(module).__name__}."
        )
    if type(module).__name__ == "_FabricModule":  # in two packages
        inner = module.module
        assert isinstance(inner, nn.Module)
        return inner
    return module
