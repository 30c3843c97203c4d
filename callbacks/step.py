"""Log what each measured step did to the loss, and how much longer it could have been."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.argument_checks import check_whole
from lightning_linf.callbacks._forward_in_training import (
    forward_of,
    is_wrapped,
    moved_parameters,
    refuse_cut_parameters,
)
from lightning_linf.callbacks._probe_in_training import products_counted
from lightning_linf.callbacks._probing_monitor import ProbingMonitor
from lightning_linf.callbacks._trainer import num_copies, sum_over_ranks
from lightning_linf.callbacks.monitor import OnError
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.offload import Offload
from lightning_linf.functional.random import derive_seed
from lightning_linf.probe.forward_loss import ForwardLoss
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.parameter_line import ParameterLine
from lightning_linf.probe.step_line import measure_step_line
from lightning_linf.report import StepLineReport


class StepMonitor(ProbingMonitor):
    r"""Log how far along the optimizer's own last step the loss falls, by forward passes alone.

    Evaluates the loss at a few multiples c of the step D that was just made, from theta (c = 0) to
    theta + D (c = 1) and beyond, and logs

    - ``step_change``: L(theta + D) - L(theta), negative where the step lowered the loss;
    - ``step_curvature``: D.HD at the end of the step;
    - ``lowest_multiple``: c at which the loss is lowest, above 1 if the step was too short;
    - ``critical_multiple``: the largest c that still lowers the loss, and ``critical_lr``, which is
      c times the learning rate of the step. 2 over it is the *critical sharpness*.

    All but the last have a standard error beside them, ``..._error``. As no derivative is taken, it
    measures what :class:`EdgeMonitor` cannot: fused kernels without a second derivative, compiled
    modules as they are, any precision, parameters of any size however they are sharded (DDP,
    ModelParallelStrategy with FSDP2, tensor parallelism or both, FSDPStrategy, DeepSpeed's stages 1
    and 2). Where both can, they agree: ``step_curvature`` is the curvature that EdgeMonitor uses.

    What the numbers mean: a step is judged by the loss of the batches that it used, which it fits
    better than others. Training is not changed in any bit.

    Errors: of rounding, as far as losses near the step do not lie on a smooth curve, which four or
    five points tell roughly (Student's t with one or two degrees of freedom is in the errors); of
    the interpolation; and, with several batches or ranks, of the choice of batches, from
    differences paired by batch. Parameters in 16 bits move by a few units in their last place, so
    that only whole multiples are evaluated, and a loss that is itself rounded to 16 bits (return
    one in float32) hides changes below 1 %.

    When: in ``on_train_batch_end`` after an optimizer step. If the gradient scaler skips the step,
    ``training_step`` returns None or no parameter has changed, the next step is measured instead.
    Under manual optimization (which needs ``probe_loss``) the step is all that the optimizers have
    changed from the first of their steps in a batch on; so it is with several optimizers.

    Cost: ``max_forwards`` forward passes over the batches, some two training steps in time. A
    compiled module is compiled once more, for passes without gradients.

    Memory: a copy of this rank's part of the parameters from before the step, during measured steps
    alone (``offload="cpu"``: on the CPU), of buffers, and of frozen parameters if they are fewer
    than trained ones. Activations are not kept. Gathered parameters of sharded modules come and go
    as in training.

    Several devices: the loss is the mean over ranks, weighted by samples (or ``probe_weight``; a
    rank without a loss, as in a pipeline, weighs 0). All ranks choose the same multiples. A failure
    on one rank is a failure on all, unless the others wait for it inside a sharded forward pass.

    Logged under ``geometry/``: the quantities that ``lightning_linf.quantities`` lists for this
    monitor. ``history`` holds the latest 1,000 measurements (``max_history``) in memory and in
    checkpoints, ``geometry.jsonl`` also the losses, and ``last_report`` is the latest
    :class:`~lightning_linf.StepLineReport`.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this.
        max_forwards: How many multiples to evaluate, at least 4. The first three give change and
            curvature, the fourth their errors, and all further ones the critical multiple.
        num_batches: Measure the mean loss over this many of the latest training batches, which
            are kept in memory.
        max_overhead: Time for probes, as a fraction of the time of training. Due steps that would
            exceed it are left out, which is logged once, but for the first one and two seconds of
            probes in all. None: every due step.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics (:class:`~lightning_linf.probe.Landscape`).
        seed: Of the random numbers that the module draws, which are the same at every multiple.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        probe_loss: A function of module and batch that gives the scalar loss to measure, in place
            of the module's own ``probe_loss(batch)``.
        name: If a trainer has several monitors of this class, all but one need a name. It becomes
            part of their tags, ``geometry/NAME/...``, and tells their states apart.
        offload: "cpu": the copy of the parameters waits on the CPU, if these are no DTensors.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for DeepSpeed's stage 3.

    Source:
        The critical multiple by forward passes: Kalra et al., arXiv:2601.16979. They double and
        halve; here the search is guided by a parabola, and what is interpolated has an error.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StepMonitor(every_n_steps=100)], logger=False)
    """

    record_tag = quantities.STEP.record_tag
    needs = (
        "a loss, finite gradients and an effect on the parameters. Look at training_step, the "
        "gradient scaler and the learning rate."
    )

    def __init__(
        self,
        every_n_steps: int = 100,
        max_forwards: int = 7,
        num_batches: int = 1,
        max_overhead: float | None = 0.1,
        mode: Mode = "eval",
        seed: int = 0,
        on_error: OnError = "warn",
        probe_loss: Callable[[Any, Any], Tensor] | None = None,
        name: str = "",
        offload: Offload | None = None,
    ) -> None:
        super().__init__(
            every_n_steps,
            num_batches,
            max_overhead,
            mode,
            seed,
            on_error,
            probe_loss,
            name,
            "highest",
            offload,
        )
        check_whole("StepMonitor", "max_forwards", max_forwards, 4, "7 are enough for most steps.")
        self.max_forwards = max_forwards
        self.last_report: StepLineReport | None = None
        self._learning_rate = math.nan

    @override
    def check_strategy(self, trainer: Trainer) -> None:
        refuse_cut_parameters("StepMonitor", trainer)

    @override
    def moved_parameters(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> Sequence[nn.Parameter]:
        return moved_parameters(trainer, pl_module)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.is_due(trainer):
            self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self._measure(trainer, pl_module)
        if report is None:
            self.postpone()
            return
        self.last_report = report
        if abs(report.change.value) < report.roughness < math.inf:
            self.warn_once(
                "roughness",
                f"the change of the loss by a step, {report.change.value:.3g}, is lost in the "
                f"rounding of the loss, {report.roughness:.3g}. Return a loss in float32, and take "
                "more num_batches.",
            )
        start = report.losses["0"]
        line = {
            quantities.LINE_MULTIPLES.name: torch.tensor([float(c) for c in report.losses]),
            quantities.LINE_CHANGES.name: torch.tensor([v - start for v in report.losses.values()]),
        }
        self.record(trainer, self._scalars(report, pl_module), {}, [], whole=line)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> StepLineReport | None:
        ranks = Ranks(sum_over_ranks(trainer), pl_module.device)
        moved = [
            p
            for p in self.moved_parameters(trainer, pl_module)
            if p.requires_grad or self._last_step.has_changed(p)
        ]
        forward = ranks.together(
            lambda: ForwardLoss(
                pl_module,
                [kept.batch() for kept in self._batches],
                [kept.batch_idx for kept in self._batches],
                moved=moved,
                loss=self.probe_loss,
                mode=self.mode,
                seed=derive_seed("masks", self.seed),
                ranks=ranks,
                run=forward_of(trainer, pl_module),
                is_wrapped=is_wrapped(trainer, pl_module),
            )
        )
        is_narrow = any(p.element_size() <= 2 for p in moved)
        with products_counted(trainer, self.max_forwards) as on_forwards:
            report = measure_step_line(
                forward,
                ParameterLine(*self._last_step.ends(moved)),
                ranks,
                max_forwards=self.max_forwards,
                whole=ranks.agree(None, float(is_narrow))[0] > 0,
                copies=num_copies(trainer),
                on_forward=lambda: on_forwards(1),
            )
        settings = {"mode": self.mode, "seed": self.seed, "num_batches": len(self._batches)}
        return report and replace(report, learning_rate=self._learning_rate, settings={**settings})

    def _scalars(self, report: StepLineReport, pl_module: LightningModule) -> dict[str, float]:
        seconds, overhead = self.cost(pl_module)
        return {
            quantities.STEP_CHANGE.tag: report.change.value,
            quantities.STEP_CHANGE_ERROR.tag: report.change.error,
            quantities.STEP_CURVATURE.tag: report.curvature.value,
            quantities.STEP_CURVATURE_ERROR.tag: report.curvature.error,
            quantities.LOWEST_MULTIPLE.tag: report.lowest_multiple.value,
            quantities.LOWEST_MULTIPLE_ERROR.tag: report.lowest_multiple.error,
            quantities.CRITICAL_MULTIPLE.tag: report.critical_multiple.value,
            quantities.CRITICAL_MULTIPLE_ERROR.tag: report.critical_multiple.error,
            quantities.CRITICAL_MULTIPLE_LOWER.tag: report.critical_multiple_lower,
            quantities.CRITICAL_MULTIPLE_UPPER.tag: report.critical_multiple_upper,
            quantities.CRITICAL_LR.tag: report.critical_lr,
            quantities.STEP_FORWARDS.tag: float(report.num_forwards),
            quantities.STEP_SECONDS.tag: seconds,
            quantities.STEP_OVERHEAD.tag: overhead,
        }
