"""What monitors that evaluate the loss again share: batches, the last step, the clock."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf.argument_checks import (
    check_callable,
    check_choice,
    check_positive,
    check_whole,
)
from lightning_linf.callbacks._budget import TimeBudget
from lightning_linf.callbacks._kept_batch import KeptBatch
from lightning_linf.callbacks._last_step import LastStep
from lightning_linf.callbacks._optimized_parameters import (
    optimized_parameters,
    remark_on_outside,
)
from lightning_linf.callbacks._trainer import logged_step
from lightning_linf.callbacks._training_landscape import TrainingLandscape
from lightning_linf.callbacks.monitor import GeometryMonitor, OnError
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.functional.offload import Offload
from lightning_linf.probe import Landscape, ProbeMemory
from lightning_linf.probe.functional_module import Mode

_T = TypeVar("_T")


class ProbingMonitor(GeometryMonitor):
    """Base of the monitors that measure the landscape of the loss after an optimizer step.

    A subclass implements :meth:`measure`, which :meth:`visit` gives a landscape. Arguments are
    those of :class:`~lightning_linf.callbacks.LinfSmoothnessMonitor`.
    """

    def __init__(
        self,
        every_n_steps: int,
        num_batches: int,
        max_overhead: float | None,
        mode: Mode,
        seed: int,
        on_error: OnError,
        probe_loss: Callable[[Any, Any], Tensor] | None,
        name: str,
        matmul_precision: MatmulPrecision,
        offload: Offload | None,
        whole_parameters: bool = False,
    ) -> None:
        super().__init__(every_n_steps, on_error, name)
        caller = type(self).__name__
        check_whole(caller, "num_batches", num_batches, 1)
        check_positive(
            caller, "max_overhead", max_overhead, "0.1 is 10 % of the training time.", or_none=True
        )
        check_choice(caller, "mode", mode, get_args(Mode))
        check_choice(caller, "matmul_precision", matmul_precision, get_args(MatmulPrecision))
        check_choice(caller, "offload", offload, get_args(Offload), or_none=True)
        check_whole(caller, "seed", seed)
        check_callable(caller, "probe_loss", probe_loss, "Give a function of module and batch.")
        self.num_batches = num_batches
        self.max_overhead = max_overhead
        self.mode: Mode = mode
        self.seed = seed
        self.probe_loss = probe_loss
        self._batches: deque[KeptBatch] = deque(maxlen=num_batches)
        self._last_step = LastStep(offload)
        self._last_global_step = 0
        self._budget = TimeBudget(max_overhead)
        self._landscape = TrainingLandscape(
            caller,
            mode,
            seed,
            probe_loss,
            matmul_precision,
            offload,
            self.warn_once,
            whole_parameters,
        )

    @property
    @override
    def state_key(self) -> str:
        named = {"name": self.name} if self.name else {}
        return self._generate_state_key(mode=self.mode, **named)  # the rest may change on resuming

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step = trainer.global_step
        self._landscape.start_training()
        self._budget.start_fit(pl_module.device)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batches.append(KeptBatch(batch, batch_idx))

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self.is_due(trainer):
            self._last_step.begin(trainer, self.moved_parameters(trainer, pl_module))

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        has_loss = bool(outputs) or not pl_module.automatic_optimization
        if not has_loss and self._batches:
            self._batches.pop()
        if trainer.global_step == self._last_global_step:  # accumulating: no optimizer step
            return
        self._last_global_step = trainer.global_step
        if self.is_due(trainer):
            # The gradient scaler has skipped the step, or training_step has returned None.
            was_made = has_loss and not self._last_step.was_skipped(trainer)
            if not trainer.strategy.reduce_boolean_decision(was_made, all=True):
                self.postpone()
            else:
                self._measure_in_time(trainer, pl_module)
        self._last_step.forget()

    @override
    def release(self) -> None:
        self._batches.clear()
        self._last_step.forget()

    def _measure_in_time(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget.stop_training(pl_module.device)
        # Clocks differ between ranks, and one must not wait for the others in a collective.
        if trainer.strategy.broadcast(self._budget.is_affordable()):
            with self.errors_handled(trainer, "measure"):
                self.measure(trainer, pl_module)
            self._budget.stop_probe(pl_module.device)
        elif (why := self._budget.first_refusal()) is not None:
            rank_zero_info(f"{type(self).__name__}: step {logged_step(trainer)} is due and {why}")
        self._budget.start_training(pl_module.device)

    def moved_parameters(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> Sequence[nn.Parameter]:
        """List what a step changes, and whose values before it are kept. Made to override."""
        return optimized_parameters(*trainer.optimizers)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the present step and record it."""
        raise NotImplementedError

    def visit(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        parameters: Collection[nn.Parameter],
        probe: Callable[[Landscape], _T],
        memory_of: Callable[[Landscape], ProbeMemory],
        coordinates: LinearMap | None = None,
    ) -> _T:
        """Call ``probe`` with the landscape of the step, as often as memory makes necessary.

        Args:
            trainer: At the step.
            pl_module: What is trained.
            parameters: Of the landscape.
            probe: What is done with it.
            memory_of: What that takes.
            coordinates: Of the landscape; None for those of the parameters.
        """
        return self._landscape.visit(
            trainer, pl_module, self._batches, parameters, probe, memory_of, coordinates
        )

    def parameters_of(self, trainer: Trainer, pl_module: LightningModule) -> Sequence[nn.Parameter]:
        """List what the optimizers step; warn once of what the landscape holds constant."""
        if (remark := remark_on_outside(pl_module, *trainer.optimizers)) is not None:
            self.warn_once("outside", remark)
        return optimized_parameters(*trainer.optimizers)

    def cost(self, pl_module: LightningModule) -> tuple[float, float]:
        """Give the seconds of the present probe, and probe time over training time."""
        seconds = self._budget.seconds_of_probe(pl_module.device)
        return seconds, self._budget.overhead(seconds)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seconds": self._budget.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._budget.load_state_dict(state_dict["seconds"])
