"""Losses that exist in train mode only."""

from collections.abc import Callable

from torch import nn

from lightning_linf.distributed.ranks import is_out_of_memory
from lightning_linf.errors import ProbeError, RestoreError


def require_no_loss_in_training(
    error: Exception, module: nn.Module, evaluate_in_training: Callable[[], object]
) -> None:
    """Say so if the loss that failed in eval mode exists in train mode, where it is tried once.

    Torchvision's detection networks, for one, return boxes instead of losses in eval mode.

    Raises:
        RestoreError: If the try has left a trace.
        ProbeError: If it does; else the ``error`` is what is wrong.
    """
    if isinstance(error, RestoreError) or is_out_of_memory(error):
        return
    # Statistics over ranks would wait for ranks on which nothing has failed.
    if any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        return
    try:
        evaluate_in_training()
    except RestoreError:
        raise
    except Exception:
        return
    raise ProbeError(
        f"probe: expected a loss of {type(module).__name__} in eval mode, but there is one in "
        f'train mode only. Measure with mode="train". In eval mode: {type(error).__name__}: {error}'
    ) from error
