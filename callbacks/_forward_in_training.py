"""How a strategy runs a module forward, and which of its tensors an optimizer moves."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_linf.callbacks._optimized_parameters import optimized_parameters
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.forward_loss import Run
from lightning_linf.probe.gathered_parameters import free_gathered


def refuse_cut_parameters(caller: str, trainer: Trainer) -> None:
    """Refuse a strategy whose parameters cannot be moved in place."""
    strategy = trainer.strategy
    if is_either(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        raise MisconfigurationException(
            f"{caller}: expected DeepSpeed's stage 1 or 2, got stage 3, which keeps parts of "
            "parameters gathered that a change of the others would not reach. Use stage 2, FSDP or "
            "ModelParallelStrategy."
        )


def moved_parameters(trainer: Trainer, module: LightningModule) -> list[nn.Parameter]:
    """List what a step changes and a forward pass reads.

    Of DeepSpeed's optimizers these are not what they step, which is flat and in float32.
    """
    if is_either(trainer.strategy, DeepSpeedStrategy):
        return [p for p in module.parameters() if p.requires_grad]
    return list({id(p): p for p in optimized_parameters(*trainer.optimizers)}.values())


def is_wrapped(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a forward pass has to go through a wrapper that gathers parameters.

    DDP's is left out: its parameters are whole, and its forward pass would send buffers.
    """
    wrapper = trainer.strategy.model
    return wrapper is not module and not isinstance(wrapper, DistributedDataParallel)


def forward_of(trainer: Trainer, module: LightningModule) -> Run:
    """Give what calls a function as ``training_step`` is called, in its precision, sharded."""
    wrapper = trainer.strategy.model if is_wrapped(trainer, module) else None

    def run(call: Callable[[Any, int], Any], batch: Any, batch_idx: int) -> Any:
        try:
            # Entered each time: autocast keeps cast weights until it is left.
            with trainer.precision_plugin.train_step_context():
                if wrapper is None:
                    return call(batch, batch_idx)
                return _through(wrapper, module, call, (batch, batch_idx))
        finally:
            free_gathered(module if wrapper is None else wrapper)

    return run


def _through(
    wrapper: nn.Module, module: LightningModule, call: Callable[..., Any], inputs: Sequence[Any]
) -> Any:
    """Call a function within the forward pass of a wrapper, as Lightning calls ``training_step``.

    Whoever runs the module puts its attributes back.
    """
    forward = module.forward

    def instead(*arguments: Any) -> Any:
        module.forward = forward  # type: ignore[method-assign]  # which the function may call
        return call(*arguments)

    module.forward = instead  # type: ignore[method-assign]
    return wrapper(*inputs)
