"""Log how unevenly the gradient is spread over coordinates."""

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.callbacks._nonfinite_state import nonfinite_state
from lightning_linf.callbacks._optimized_parameters import named_optimized_parameters
from lightning_linf.callbacks._trainer import (
    gradient_scale,
    logged_step,
    loss_scale,
    sum_over_ranks,
)
from lightning_linf.callbacks.monitor import GeometryMonitor
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.heterogeneity_sums import HeterogeneitySums
from lightning_linf.recorder.heterogeneity import spread_of, sums_over_ranks


class GradientHeterogeneityMonitor(GeometryMonitor):
    """Log how unevenly the gradient that training uses is spread over its entries.

    When: in ``on_before_optimizer_step``, after ranks have averaged ``.grad`` and AMP has unscaled
    it, before clipping. Two kinds of steps are not measured, and the next step is measured instead:
    steps that the gradient scaler skips because float16 gradients overflow, and steps without a
    gradient because ``training_step`` returned None. Training is not changed in any bit.

    What: the gradients of the parameters that the optimizer steps. A parameter without a gradient
    counts as zeros. A parameter that the module's ``named_parameters()`` does not list is named by
    its place in the optimizer ("optimizer.0.1": group 0, number 1). The monitor warns once of
    gradients, and once of an optimizer's state, that are not finite.

    Cost: on measured steps one pass over the gradient and one over the state on a GPU with Triton,
    else some ten passes over small pieces of the gradient; nothing on other steps. With several
    ranks, each rank counts its own part (its shards, or an equal share of a gradient that all ranks
    have). One reduction of some 9,000 numbers for each tensor adds up the counts.

    Logged under ``geometry/``: the quantities that ``lightning_linf.quantities`` lists for this
    monitor, such as density, Gini coefficient and the energy of the largest 1 % of the entries; and
    a record with a row for each parameter tensor and a histogram of log10|g|. With several
    optimizers, each has its own tags, which end in ``/optimizer0`` and so on. ``history`` holds the
    latest 1,000 measurements (``max_history``) in memory and in checkpoints, as dicts with
    ``step``, the scalars, ``tensor_names`` and ``per_tensor``.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this. Lightning logs at the same steps if ``log_every_n_steps`` has the same value.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        name: If a trainer has several monitors of this class, all but one need a name. It becomes
            part of their tags, ``geometry/NAME/...``, and tells their states apart.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy and DeepSpeed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[GradientHeterogeneityMonitor(every_n_steps=50)], logger=False
        ... )

        Override ``should_measure`` to choose other steps. When it is asked, ``global_step`` is the
        number of optimizer steps before the present one:

        >>> class Early(GradientHeterogeneityMonitor):
        ...     def should_measure(self, trainer):
        ...         return trainer.global_step in (0, 10, 100)
    """

    record_tag = quantities.HETEROGENEITY.record_tag
    _measured: tuple[int, set[int]] = (-1, set())  # a step, and optimizers by identity

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self.is_due(trainer) and self._is_first_this_step(trainer, optimizer):
            with self.errors_handled(trainer, "measure"):
                self._measure(trainer, pl_module, optimizer)

    def _is_first_this_step(self, trainer: Trainer, optimizer: Optimizer) -> bool:
        """Manual optimization may step an optimizer several times between two batches."""
        step = logged_step(trainer)
        if self._measured[0] != step:
            self._measured = (step, set())
        is_first = id(optimizer) not in self._measured[1]
        self._measured[1].add(id(optimizer))
        return is_first

    def _measure(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = named_optimized_parameters(pl_module, optimizer)
        has_gradients = any(p.grad is not None for p in parameters.values())
        if not trainer.strategy.reduce_boolean_decision(has_gradients, all=False):
            self.postpone()  # training_step has returned None
            return
        ranks = Ranks(sum_over_ranks(trainer), pl_module.device)
        scale = gradient_scale(trainer, optimizer)
        share = (trainer.global_rank, trainer.world_size)
        sums = sums_over_ranks(list(parameters.values()), ranks, scale, *share)
        if loss_scale(trainer) is not None and (sums.num_inf + sums.num_nan).any():
            self.postpone()  # the scaler will skip this step
            return
        spread = spread_of(sums)
        self.record(
            trainer,
            spread.scalars,
            spread.columns,
            list(parameters),
            suffix=_suffix(trainer, optimizer),
            whole=spread.whole,
            histogram=spread.histogram,
        )
        self._warn_of_nonfinite(trainer, optimizer, parameters, sums)

    def _warn_of_nonfinite(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        parameters: dict[str, nn.Parameter],
        sums: HeterogeneitySums,
    ) -> None:
        """Say once that gradients, and once that an optimizer's state, are not finite."""
        counts = (sums.num_inf + sums.num_nan).tolist()
        bad = [name for name, count in zip(parameters, counts, strict=True) if count]
        if bad:
            self.warn_once(
                "gradients",
                f"{sum(counts)} entries of the gradient are inf or NaN at step "
                f"{logged_step(trainer)}, first in {bad[0]}. They are left out of all numbers but "
                "`num_nonfinite`. Look at the loss, or clip and lower the learning rate.",
            )
        if "state" not in self._warned:
            found = nonfinite_state(optimizer, parameters)
            if trainer.strategy.reduce_boolean_decision(found is not None, all=False):
                self.warn_once(
                    "state",
                    f"the optimizer's {found or 'state on another rank'} is not finite at step "
                    f"{logged_step(trainer)}, and stays so whatever the gradients are. Resume from "
                    "a checkpoint before that.",
                )


def _suffix(trainer: Trainer, optimizer: Optimizer) -> str:
    if len(trainer.optimizers) < 2:
        return ""
    numbers = [i for i, known in enumerate(trainer.optimizers) if known is optimizer]
    return f"/optimizer{numbers[0]}" if numbers else ""
