"""Whole parameters that a forward pass alone leaves behind, under either kind of FSDP."""

import torch
from torch import nn

from lightning_linf.probe.parallel_modules import reshard


def free_gathered(module: nn.Module) -> None:
    """Free what a forward pass has gathered, so that the next one gathers the shards again.

    Sharded training frees it in the backward pass, which does not come.

    Args:
        module: What is called: the outermost wrapper, if there is one.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    reshard(module)
    from torch.distributed.fsdp import FullyShardedDataParallel  # half a second

    for part in FullyShardedDataParallel.fsdp_modules(module):
        handle = part._handle
        if handle is not None and handle.uses_sharded_strategy:
            # No public function does this one module at a time, in the memory of its shards.
            from torch.distributed.fsdp._runtime_utils import _reshard

            _reshard(part, handle, True)
