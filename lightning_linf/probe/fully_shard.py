"""Run a module that ``fully_shard`` has sharded as if its parameters were whole."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_linf.distributed.gathering import gather
from lightning_linf.distributed.shards import is_sharded
from lightning_linf.errors import ProbeError

_FULLY_SHARD, _TENSOR_PARALLEL = "torch.distributed.fsdp", "torch.distributed.tensor"


def reshard(module: nn.Module) -> None:
    """Free whole parameters that ``fully_shard`` has left, as after a forward pass alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule  # half a second

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather_sharded(places: Iterable[tuple[Any, Any, Tensor]]) -> dict[int, Tensor]:
    """Gather every sharded tensor; give the whole ones by the identity of the sharded ones.

    All ranks must call this; one whose memory runs out inside leaves the others waiting.

    Args:
        places: Container, key and tensor of every place that holds a parameter or a buffer.
    """
    sharded = {id(tensor): tensor.detach() for _, _, tensor in places if is_sharded(tensor)}
    return dict(zip(sharded, gather(list(sharded.values())), strict=True))


def bypass_sharding(module: nn.Module) -> None:
    """Remove the hooks by which ``fully_shard`` gathers parameters.

    The caller puts them back, with all other state of the module.

    Raises:
        ProbeError: If there are hooks of tensor parallelism, which cannot do without its shards.
    """
    for name, part in module.named_modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key, hook in list(hooks.items()):
                origin = _origin(hook)
                if origin.startswith(_FULLY_SHARD):
                    del hooks[key]
                elif origin.startswith(_TENSOR_PARALLEL):
                    raise ProbeError(
                        "probe: expected parameters sharded by fully_shard alone, got tensor "
                        f"parallelism in {name or type(module).__name__}. Use "
                        "ModelParallelStrategy(tensor_parallel_size=1) to measure the smoothness."
                    )


def _origin(hook: Any) -> str:
    """Name of the Python module in which a hook was written."""
    function = getattr(hook, "func", hook)  # of a functools.partial
    return str(getattr(function, "__module__", ""))
