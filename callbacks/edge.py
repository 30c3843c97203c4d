"""Log how near training is to instability, and what each measured step did to the loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.argument_checks import check_whole
from lightning_linf.callbacks._last_step import LastStep
from lightning_linf.callbacks._probe_in_training import products_counted
from lightning_linf.callbacks._probing_monitor import ProbingMonitor
from lightning_linf.callbacks.monitor import OnError
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.offload import Offload
from lightning_linf.optim.linear_step import why_not_linear
from lightning_linf.probe import Landscape, ProbeMemory
from lightning_linf.probe.edge import EDGE_HVPS, measure_edge_of_landscape
from lightning_linf.probe.functional_module import Mode
from lightning_linf.report import EdgeReport
from lightning_linf.report.scalars import edge_columns_of, edge_scalars_of


class EdgeMonitor(ProbingMonitor):
    """Log whether the learning rate is near the edge of stability, too small or too large.

    Measures what :func:`~lightning_linf.measure_edge` does, with the state that the optimizer has
    after the step and the learning rate of the next one: ``edge``, which is 1 where steps begin to
    diverge, and ``largest_stable_lr``. Of the step that was just made: ``step_gain``, what it
    changed of the loss, and ``best_step_multiple``, how many times as long the best step along it
    would have been; both also of each parameter tensor. Training is not changed in any bit.

    What the numbers mean for small batches: a step is judged by the loss of the batches that it
    used, which it fits better than others, and the edge is that of their mean loss. Take more
    ``num_batches`` for what holds beyond these batches.

    When: in ``on_train_batch_end`` after an optimizer step, on the batches that the step used. If
    the gradient scaler skips the step, or ``training_step`` returns None, the next step is measured
    instead. The first probe of a training checks the loss as :class:`LinfSmoothnessMonitor` does.

    Cost: 1 gradient, and about 2 for each product, times ``num_batches``; at most ``max_hvps`` + 1
    products, and once, 7 gradients for the check. A copy of the parameters is kept during a
    measured step.

    Optimizers: the edge is known of SGD, Adam, AdamW, BlockwiseAdam, AdaSGD, and these in other
    coordinates (Reparameterized). With others the monitor warns once and measures the steps alone.
    Several optimizers of a module count as one with the groups of all, as if they all stepped at
    each step.

    Memory and several devices: as :class:`LinfSmoothnessMonitor`.

    Logged under ``geometry/``: the quantities that ``lightning_linf.quantities`` lists for this
    monitor, and a record with a row for each parameter tensor. ``history`` holds the latest 1,000
    measurements (``max_history``) in memory and in checkpoints, and ``last_report`` is the latest
    :class:`~lightning_linf.EdgeReport`.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this.
        max_hvps: Products for the edge; it stops earlier once both ends are within 1 %.
        num_batches: Measure the mean loss over this many of the latest training batches, which
            are kept in memory.
        max_overhead: Time for probes, as a fraction of the time of training. Due steps that would
            exceed it are left out, which is logged once, but for the first one and two seconds of
            probes in all. None: every due step.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics (:class:`~lightning_linf.probe.Landscape`).
        seed: Seed of the start of the iteration.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        probe_loss: A function of module and batch that gives the scalar loss to measure, in place
            of the module's own ``probe_loss(batch)``.
        name: If a trainer has several monitors of this class, all but one need a name. It becomes
            part of their tags, ``geometry/NAME/...``, and tells their states apart.
        matmul_precision: Of probes alone, as in :func:`~lightning_linf.measure_geometry`.
        offload: As there.
        whole_parameters: As there.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy and DeepSpeed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EdgeMonitor(every_n_steps=100)], logger=False)
    """

    record_tag = quantities.EDGE_OF_STABILITY.record_tag

    def __init__(
        self,
        every_n_steps: int = 100,
        max_hvps: int = EDGE_HVPS,
        num_batches: int = 1,
        max_overhead: float | None = 0.1,
        mode: Mode = "eval",
        seed: int = 0,
        on_error: OnError = "warn",
        probe_loss: Callable[[Any, Any], Tensor] | None = None,
        name: str = "",
        matmul_precision: MatmulPrecision = "highest",
        offload: Offload | None = None,
        whole_parameters: bool = False,
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
            matmul_precision,
            offload,
            whole_parameters,
        )
        check_whole("EdgeMonitor", "max_hvps", max_hvps, 1)
        self.max_hvps = max_hvps
        self.last_report: EdgeReport | None = None

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = self.parameters_of(trainer, pl_module)
        if (reason := why_not_linear(trainer.optimizers)) is not None:
            self.warn_once("edge", f"measures the steps alone. For the edge it {reason}")
        probe = partial(
            _probe,
            trainer,
            self._last_step,
            with_edge=reason is None,
            max_hvps=self.max_hvps,
            seed=self.seed,
        )
        report = self.visit(trainer, pl_module, parameters, probe, memory_of=_memory)
        self.last_report = report
        seconds, overhead = self.cost(pl_module)
        scalars = {
            quantities.EDGE_SECONDS.tag: seconds,
            quantities.EDGE_OVERHEAD.tag: overhead,
            **edge_scalars_of(report),
        }
        columns = {name: torch.tensor(rows) for name, rows in edge_columns_of(report).items()}
        self.record(trainer, scalars, columns, list(report.per_tensor))


def _memory(landscape: Landscape) -> ProbeMemory:
    """Bound what the edge takes by a whole report, whose searches hold no less."""
    return landscape.memory(num_probes=4, num_partitions=2)


def _probe(
    trainer: Trainer, last_step: LastStep, landscape: Landscape, *, max_hvps: int, **options: Any
) -> EdgeReport:
    """Enter a landscape and measure it, with a ProbeError if SIGTERM comes meanwhile."""
    with products_counted(trainer, max_hvps + 1) as on_hvps, landscape:
        return measure_edge_of_landscape(
            landscape,
            trainer.optimizers,
            last_step=last_step.change(landscape),
            max_hvps=max_hvps,
            on_hvps=on_hvps,
            **options,
        )
