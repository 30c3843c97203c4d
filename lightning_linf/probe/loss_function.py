"""The loss that a module has on a batch, and the weight of the batch in a mean."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lightning_linf.distributed.ranks import is_out_of_memory
from lightning_linf.errors import ProbeError, RestoreError
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.batch_copy import num_samples

LossFunction: TypeAlias = Callable[[Any, int], Tensor]


def find_loss_function(
    module: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None
) -> LossFunction:
    """Find what turns ``(batch, batch_idx)`` into a scalar loss with a graph.

    It is what :func:`find_output` finds, and raises a ProbeError if the loss is none.
    """
    output, source = find_output(module, loss)
    return lambda batch, batch_idx: _differentiable(output(batch, batch_idx), source)


def find_output(
    module: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None
) -> tuple[Callable[[Any, int], Any], str]:
    """Find what turns ``(batch, batch_idx)`` into a loss, or a dict of it, and what it is called.

    In this order: ``loss(module, batch)`` if given, the module's ``probe_loss(batch)``, a
    LightningModule's ``training_step``.

    Raises:
        ProbeError: If there is none of these, or the module steps its optimizers by hand.
    """
    name = type(module).__name__
    if loss is not None:
        return lambda batch, batch_idx: loss(module, batch), "loss(module, batch)"
    if not calls_training_step(module, loss):
        return (
            lambda batch, batch_idx: module.probe_loss(batch),  # type: ignore[operator]  # checked
            f"{name}.probe_loss",
        )
    if not is_either(module, LightningModule):
        raise ProbeError(
            f"probe: expected a LightningModule or a `loss`, got a plain {name}. "
            "Pass `loss=lambda module, batch: ...` that returns a scalar."
        )
    if not module.automatic_optimization:
        raise ProbeError(
            f"probe: expected automatic optimization, but {name}.training_step steps its "
            "optimizers by hand, which cannot be repeated without changing the training. "
            f"Define {name}.probe_loss(batch) that returns the loss to measure, or give a function "
            "of module and batch: `loss` of measure_geometry, `probe_loss` of a monitor."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ProbeError(
            f"probe: expected {name}.training_step to take a batch, but it takes an iterator. "
            f"Define {name}.probe_loss(batch) that returns the loss to measure."
        )
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)

    def training_step(batch: Any, batch_idx: int) -> Any:
        return module.training_step(*((batch, batch_idx) if takes_index else (batch,)))

    return training_step, f"{name}.training_step"


def calls_training_step(module: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None) -> bool:
    """Tell whether :func:`find_output` finds ``training_step``, which may change all it reaches."""
    return loss is None and not callable(getattr(module, "probe_loss", None))


def batch_weight(module: nn.Module, batch: Any) -> float:
    """Number of samples in a batch, or what the module's ``probe_weight(batch)`` says.

    The loss of several batches is their mean with these weights. A loss that is a mean over tokens
    wants the number of tokens.

    Raises:
        ProbeError: If tensors of the batch disagree about its length, or it holds none.
    """
    if callable(getattr(module, "probe_weight", None)):
        return float(module.probe_weight(batch))  # type: ignore[operator]  # checked above
    remedy = (
        f"Define {type(module).__name__}.probe_weight(batch) that returns the number of samples "
        "(or tokens) that the loss is a mean over."
    )
    return float(num_samples(batch, remedy))


def require_no_loss_in_training(
    error: Exception, module: nn.Module, evaluate_in_training: Callable[[], object]
) -> None:
    """Try once in train mode a loss that failed in eval mode, and say so if it exists there.

    An example: torchvision's detection networks return boxes instead of losses in eval mode.

    Raises:
        RestoreError: If what the try has changed could not be put back.
        ProbeError: If there is a loss in train mode. Otherwise ``error`` tells what is wrong.
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


def scalar_of(output: Any, source: str) -> Tensor:
    """Give the loss in what ``source`` returned. Shape: ().

    Raises:
        ProbeError: If there is no scalar.
    """
    value = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ProbeError(
            f"probe: expected a scalar loss (or a dict with one as 'loss') from {source}, "
            f"got {got}. Return the mean over the batch."
        )
    return value.reshape(())


def _differentiable(output: Any, source: str) -> Tensor:
    value = scalar_of(output, source)
    if not value.requires_grad:
        raise ProbeError(
            f"probe: expected a loss with a graph from {source}, got a tensor that does not "
            "require grad. Compute it from the parameters, without detach or no_grad."
        )
    if not isinstance(value, FakeTensor) and not value.isfinite():  # a fake one has no value
        raise ProbeError(
            f"probe: expected a finite loss from {source}, got {value.item()}. Look at the "
            "parameters and the batch; a lower learning rate often helps."
        )
    return value
