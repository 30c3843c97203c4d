"""Run a module whose parameters ranks share as it would run on one device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_linf.distributed.gathering import gather
from lightning_linf.distributed.shards import is_sharded

# Where the hooks are written by which parallel modules gather, shard and redistribute.
_FULLY_SHARD, _TENSOR_PARALLEL = "torch.distributed.fsdp", "torch.distributed.tensor"


def has_sharded(module: nn.Module) -> bool:
    """Tell whether a parameter or a buffer is a DTensor, once :func:`reshard` was called."""
    return any(map(is_sharded, (*module.parameters(), *module.buffers())))


def reshard(module: nn.Module) -> None:
    """Free whole parameters that ``fully_shard`` has left, as after a forward pass alone."""
    for part in _fsdp_parts(module):
        part.reshard()


def gather_sharded(places: Iterable[tuple[Any, Any, Tensor]]) -> dict[int, Tensor]:
    """Gather every sharded tensor; give the whole ones by the identity of the sharded ones.

    All ranks must call this, in :meth:`~lightning_linf.distributed.ranks.Ranks.together`, so that
    one whose memory runs out is an error on all.

    Args:
        places: Container, key and tensor of every place that holds a parameter or a buffer.
    """
    sharded = {id(tensor): tensor.detach() for _, _, tensor in places if is_sharded(tensor)}
    return dict(zip(sharded, gather(list(sharded.values())), strict=True))


def bypass_parallelism(module: nn.Module) -> None:
    """Remove what gathers parameters, and what moves activations between ranks.

    These are hooks, and methods that ``register_fsdp_forward_method`` has put into the module. The
    caller puts them back, with all other state of the module.
    """
    for part in module.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key, hook in list(hooks.items()):
                if _origin(hook).startswith((_FULLY_SHARD, _TENSOR_PARALLEL)):
                    del hooks[key]
        for name, value in list(vars(part).items()):
            code = getattr(getattr(value, "__func__", None), "__code__", None)
            if code is not None and "_fully_shard" in code.co_filename:
                del part.__dict__[name]


def is_tensor_parallel(module: nn.Module) -> bool:
    """Tell whether DTensors are used without ``fully_shard``, or beside it."""
    dims = {id(part): mesh.ndim for part in _fsdp_parts(module) for mesh in _meshes(part)}
    most = max(dims.values(), default=0)
    return any(p.device_mesh.ndim > most for p in module.parameters() if is_sharded(p))


def batch_key(module: nn.Module, rank: int) -> int:
    """Give a number that ranks have in common which see the same batches, and no others.

    Ranks of a mesh of ``fully_shard`` see different batches, and those with the same place in
    other such meshes the same ones. Without it all ranks of a mesh split the work on one batch.
    """
    for part in _fsdp_parts(module):
        for mesh in _meshes(part):
            return int(mesh.mesh.flatten().tolist().index(rank))
    meshes = [p.device_mesh for p in module.parameters() if is_sharded(p)]
    return min((int(mesh.mesh.min()) for mesh in meshes), default=rank)


def mesh_device(module: nn.Module) -> torch.device:
    """Give the device from which ranks send; parameters may be offloaded to the CPU."""
    kinds = [p.device_mesh.device_type for p in module.parameters() if is_sharded(p)]
    return torch.device(kinds[0] if kinds else "cpu")


def _fsdp_parts(module: nn.Module) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule  # half a second

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _meshes(part: Any) -> list[Any]:
    """Meshes over which ``fully_shard`` shards or replicates a part; no public name tells them."""
    state = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # torch 2.12; before it there was one
    groups = [state._fsdp_param_group] if groups is None else groups
    return [group.mesh_info.mesh for group in groups if group is not None]


def _origin(hook: Any) -> str:
    """Name of the Python module in which a hook was written."""
    function = getattr(hook, "func", hook)  # of a functools.partial
    return str(getattr(function, "__module__", ""))
