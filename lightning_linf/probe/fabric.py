"""The module inside the wrapper that Lightning Fabric puts around it."""

from torch import nn


def unwrap_fabric(caller: str, module: nn.Module) -> nn.Module:
    """Give the module that ``Fabric.setup`` was given, or this one.

    The wrapper adds autocast and synchronisation, which a probe does without, and renames the
    parameters.

    Raises:
        ValueError: If ``module`` is not an nn.Module.
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
