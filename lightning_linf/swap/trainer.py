"""Replace the optimizers of a running Trainer."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lightning_linf.lightning_packages import is_either
from lightning_linf.optim import MuonWithAdamW, Reparameterized
from lightning_linf.swap.carry import carry_state
from lightning_linf.swap.geometry import Geometry, check_geometry
from lightning_linf.swap.groups import betas_note, decay_note, holds_mapped_state

# Hooks that Lightning calls between the forward pass and the end of the optimizer's step.
_WITHIN_A_STEP = {
    *("training_step", "on_before_backward", "backward", "on_after_backward"),
    *("on_before_zero_grad", "optimizer_zero_grad", "configure_gradient_clipping"),
    *("on_before_optimizer_step", "optimizer_step", "lr_scheduler_step", "configure_optimizers"),
}
_KNOWN_SCHEDULERS = (LRScheduler, ReduceLROnPlateau)
# Learning rates that torch's schedulers keep as attributes.
_RATES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "eta_min")


def swap_optimizers(
    trainer: Trainer,
    module: LightningModule,
    geometry: Geometry,
    *,
    carry: bool = True,
    index: int | None = None,
) -> str:
    """Replace the optimizers of a trainer that is fitting, between two steps.

    Schedulers, checkpoints and ``module.optimizers()`` then use the new ones. If anything fails,
    all is left as it was.

    Args:
        trainer: The trainer.
        module: The module that it fits.
        geometry: The choice of the new optimizers.
        carry: Carry momentum and second moments over
            (:func:`~lightning_linf.swap.carry_state`); else the new optimizers start anew.
        index: Number of the optimizer to replace, if the module has several. Default: all of them.

    Returns:
        What was done, in words; they are logged, too.

    Raises:
        MisconfigurationException: If the trainer is not fitting this module, has no optimizer with
            a learning rate, is in the middle of a step, or shards by FSDPStrategy or DeepSpeed.
        ValueError: If ``geometry`` does not fit the parameters or a scheduler, or there is no such
            ``index``.
    """
    _check(trainer, module, geometry)
    lines, swaps = [], {}
    for old in chosen_optimizers("swap_optimizers", trainer, index):
        new = geometry.make(old, module)
        carried = "there was no state to carry" if not old.state else "its state starts anew"
        if carry and old.state:
            carried = carry_state(old, new)
        swaps[old] = new
        notes = betas_note(old, new) + decay_note(old, new)
        lines.append(f"{_describe(old)} -> {_describe(new)}; {carried}{notes}")
    _replace(trainer, module, geometry, swaps)
    done = "; ".join(lines)
    # There, a resumed trainer has not restored its global step yet.
    is_start = module._current_fx_name in ("on_fit_start", None)
    when = "at the start" if is_start else f"at step {trainer.global_step}"
    rank_zero_info(f"Optimizer swapped {when}: {done}.")
    return done


def chosen_optimizers(caller: str, trainer: Trainer, index: int | None) -> list[Optimizer]:
    """Give the trainer's optimizer of this number, or all; raise a ValueError if there is none."""
    optimizers = list(trainer.optimizers)
    if index is None:
        return optimizers
    if not 0 <= index < len(optimizers):
        raise ValueError(
            f"{caller}: expected `index` of one of {len(optimizers)} optimizers, got "
            f"{index}. Count from 0, in the order of configure_optimizers."
        )
    return [optimizers[index]]


def check_strategy(caller: str, trainer: Trainer) -> None:
    """Raise a MisconfigurationException for strategies that flatten and cut parameters."""
    if is_either(trainer.strategy, DeepSpeedStrategy, FSDPStrategy):
        raise MisconfigurationException(
            f"{caller}: expected whole parameters (one device, DDP) or DTensors, got "
            f"{type(trainer.strategy).__name__}, whose flat parts do not tell where they belong. "
            "Use ModelParallelStrategy, and fully_shard in configure_model, or DDP."
        )


def _check(trainer: Trainer, module: LightningModule, geometry: Geometry) -> None:
    check_geometry("swap_optimizers", geometry)
    check_strategy("swap_optimizers", trainer)
    status, hook = trainer.state.status, module._current_fx_name
    is_fitting = trainer.state.fn == TrainerFn.FITTING and status == TrainerStatus.RUNNING
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    has_rates = any(group["params"] and group.get("lr") is not None for group in groups)
    for is_kept, expected in (
        (is_fitting,
         f"a trainer that is fitting, whose optimizers exist, got one that is {status.value}. Swap "
         "in a hook such as on_train_batch_start, or by the callback SwapOptimizer"),
        (module is trainer.lightning_module,
         f"the module that the trainer fits, got another {type(module).__name__}. Pass "
         "trainer.lightning_module"),
        (has_rates,
         "optimizers with learning rates to replace, got none. Return one from "
         "configure_optimizers"),
        (not any(map(holds_mapped_state, trainer.optimizers)),
         "an optimizer with a state in its own coordinates, got one with the state of a run in "
         "others. Resume with the callbacks, at the same steps, and the class of that run"),
        # The hook that Lightning is in, which it keeps for `self.log`; no public attribute tells.
        (hook not in _WITHIN_A_STEP,
         f"to be called between optimizer steps, got called in {hook}. Use on_train_batch_start, "
         "or the callback SwapOptimizer"),
    ):  # fmt: skip
        if not is_kept:
            raise MisconfigurationException(f"swap_optimizers: expected {expected}.")


def _replace(
    trainer: Trainer,
    module: LightningModule,
    geometry: Geometry,
    swaps: Mapping[Optimizer, Optimizer],
) -> None:
    """Put the new optimizers wherever the old ones are, or leave all as it was if that fails."""
    optimizers = list(trainer.optimizers)
    parts = [p for config in trainer.lr_scheduler_configs for p in _parts(config.scheduler)]
    before = [(part, dict(vars(part))) for part in parts]
    try:
        trainer.strategy.optimizers = [swaps.get(old, old) for old in optimizers]
        for part in parts:
            _follow(part, swaps, geometry)
        _verify(trainer, module, swaps)
    except BaseException:
        trainer.strategy.optimizers = optimizers
        for part, attributes in before:
            vars(part).update(attributes)
        raise


def _parts(scheduler: Any) -> Iterator[Any]:
    """Yield a scheduler and those within it, as in SequentialLR."""
    yield scheduler
    for value in vars(scheduler).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, LRScheduler):
                yield from _parts(part)


def _follow(scheduler: Any, swaps: Mapping[Optimizer, Optimizer], geometry: Geometry) -> None:
    """Have a scheduler use the new optimizer, and scale the learning rates that it keeps."""
    held = {k: v for k, v in vars(scheduler).items() if isinstance(v, Optimizer) and v in swaps}
    if held and geometry.lr is not None and not isinstance(scheduler, _KNOWN_SCHEDULERS):
        raise ValueError(
            f"swap_optimizers: expected a scheduler of torch beside `lr`, got "
            f"{type(scheduler).__name__}, which keeps learning rates of its own and would set them "
            "again. Leave `lr` out, and set the rates there."
        )
    for name, old in held.items():
        new = swaps[old]
        if getattr(scheduler, "cycle_momentum", False):
            if not {"betas", "momentum"} & new.defaults.keys():
                raise ValueError(
                    "swap_optimizers: expected an optimizer with momentum under "
                    f"{type(scheduler).__name__}(cycle_momentum=True), got {_describe(new)}. Set "
                    "cycle_momentum=False."
                )
            scheduler.use_beta1 = "betas" in new.defaults
        setattr(scheduler, name, new)
        _announce_steps(new)
        factor = geometry.lr_factor(old)
        for key in _RATES if factor != 1.0 else ():
            rates = getattr(scheduler, key, None)
            if isinstance(rates, (list, tuple)):
                setattr(scheduler, key, [rate * factor for rate in rates])
            elif rates is not None:
                setattr(scheduler, key, rates * factor)


def _announce_steps(optimizer: Optimizer) -> None:
    """Prepare an optimizer for a scheduler, as the making of a scheduler does.

    Each scheduler of torch wraps ``optimizer.step`` to warn if it is not called first.
    """
    initial = [group.pop("initial_lr", None) for group in optimizer.param_groups]
    LambdaLR(optimizer, lambda _: 1.0)  # it sets lr to initial_lr, or if there is none, to lr
    for group, rate in zip(optimizer.param_groups, initial, strict=True):
        del group["initial_lr"]
        if rate is not None:
            group["initial_lr"] = rate


def _verify(
    trainer: Trainer, module: LightningModule, swaps: Mapping[Optimizer, Optimizer]
) -> None:
    """Raise a MisconfigurationException if an old optimizer is still in use somewhere."""
    wrapped = module.optimizers(use_pl_optimizer=True)
    stepped = [
        getattr(each, "optimizer", each)
        for each in (wrapped if isinstance(wrapped, list) else [wrapped])
    ]
    live = [*trainer.optimizers, *stepped]
    if any(old in live for old in swaps) or not all(
        new in trainer.optimizers and new in stepped for new in swaps.values()
    ):
        raise MisconfigurationException(
            "swap_optimizers: expected the trainer to step the new optimizer, got the old one "
            f"still in place under {type(trainer.strategy).__name__}. Use another strategy."
        )
    for config in trainer.lr_scheduler_configs:
        if config.scheduler.optimizer in swaps:
            raise MisconfigurationException(
                "swap_optimizers: expected the optimizer of a scheduler as an attribute of it, or "
                f"of a scheduler of torch in it, got neither in {type(config.scheduler).__name__}. "
                "Let it keep its optimizer as `self.optimizer`."
            )


def _describe(optimizer: Optimizer) -> str:
    if isinstance(optimizer, Reparameterized):
        return f"{_describe(optimizer.inner)} under {optimizer.reparameterization!r}"
    if isinstance(optimizer, MuonWithAdamW):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        num_matrices = sum(map(optimizer.is_matrix, params))
        return f"MuonWithAdamW(Muon for {num_matrices} of {len(params)} tensors)"
    partition = getattr(optimizer, "partition", None)
    name = partition if isinstance(partition, str) else getattr(partition, "name", None)
    return type(optimizer).__name__ + (f"({name})" if name else "")
