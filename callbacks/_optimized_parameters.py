"""Which parameters optimizers step, and what to call them."""

from torch import nn
from torch.optim import Optimizer

from lightning_linf.partition.pieces import trainable_parameters


def optimized_parameters(*optimizers: Optimizer) -> list[nn.Parameter]:
    """List what optimizers step."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [p for group in groups for p in group["params"]]


def outside_parameters(module: nn.Module, *optimizers: Optimizer) -> dict[str, nn.Parameter]:
    """Name what optimizers step and ``module.named_parameters()`` does not list.

    The names tell the place: "optimizer.0.1" is parameter 1 of group 0.
    """
    listed = {id(p) for p in module.parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {
        f"optimizer.{i}.{j}": p
        for i, group in enumerate(groups)
        for j, p in enumerate(group["params"])
        if p.requires_grad and id(p) not in listed
    }


def named_optimized_parameters(
    module: nn.Module, *optimizers: Optimizer
) -> dict[str, nn.Parameter]:
    """Name what optimizers step and requires grad."""
    inside = trainable_parameters(module, optimized_parameters(*optimizers))
    return {**inside, **outside_parameters(module, *optimizers)}


def remark_on_outside(module: nn.Module, *optimizers: Optimizer) -> str | None:
    """Say which parameters a probe holds constant although optimizers step them, if there are."""
    outside = outside_parameters(module, *optimizers)
    if not outside:
        return None
    shapes = ", ".join(str(tuple(p.shape)) for p in outside.values())
    return (
        "holds constant what the optimizers step but the module's named_parameters() does not "
        f"list: of shape {shapes}. Make it an attribute of an nn.Module to measure it."
    )
