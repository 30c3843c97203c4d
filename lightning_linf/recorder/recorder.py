"""Measure and record the geometry in a training loop without a Trainer."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_linf import quantities
from lightning_linf.argument_checks import check_choice, check_whole
from lightning_linf.distributed.processes import rank_and_size, sum_over_processes
from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import RankLostError, RestoreError
from lightning_linf.partition.pieces import trainable_parameters
from lightning_linf.probe import measure_geometry
from lightning_linf.probe.wrappers import unwrap, unwrap_optimizer
from lightning_linf.recorder.entry import make_record
from lightning_linf.recorder.failures import kind_and_cause
from lightning_linf.recorder.heterogeneity import spread_of, sums_over_ranks
from lightning_linf.recorder.output import RunFolder
from lightning_linf.recorder.stage import TrainingStage
from lightning_linf.recorder.training import training_settings
from lightning_linf.report import EdgeReport, GeometryReport
from lightning_linf.report.scalars import (
    columns_of,
    edge_columns_of,
    edge_scalars_of,
    scalars_of,
)

OnError = Literal["warn", "raise"]


class GeometryRecorder:
    """Measure and record in a plain PyTorch loop, or one of Fabric or Accelerate.

    Writes what the monitors of ``lightning_linf.callbacks`` write beside a Trainer, so that the tab
    in TensorBoard and ``lightning-linf report`` show it: ``geometry.jsonl`` in ``logdir``, and an
    event file beside it where tensorboard is installed. An event file of your own may stand in the
    same folder. Modules, optimizers, gradients and random states are not changed in any bit.

    Several processes (torch.distributed has started): all of them make the same calls, each with
    its own batches; numbers are those of all, and the first process writes.

    For transformers' Trainer there is
    ``lightning_linf.recorder.transformers.GeometryCallback``.

    Args:
        logdir: Folder of this run. Records of an earlier training in it, from the step on that is
            recorded first, are moved to a file beside.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        own_steps_from: The number of the first optimizer step in an event file of your own in the
            same folder. With 1, its losses stand beside the geometry of their steps.

    Raises:
        ValueError: If an argument has a wrong value.

    Example:
        >>> import tempfile
        >>> module, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]])
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as logdir, GeometryRecorder(logdir) as recorder:
        ...     loss = module(x).square().mean()
        ...     loss.backward()
        ...     recorder.observe(module, step=0, loss=loss, optimizer=optimizer)
        ...     optimizer.step()
        ...     report = recorder.measure(
        ...         module, [x], step=0, loss=lambda m, x: m(x).square().mean()
        ...     )
        >>> round(report.one_one_norm, 3)
        18.0
    """

    def __init__(
        self, logdir: str | Path, *, on_error: OnError = "warn", own_steps_from: int = 0
    ) -> None:
        check_choice("GeometryRecorder", "on_error", on_error, get_args(OnError))
        check_whole("GeometryRecorder", "own_steps_from", own_steps_from, 0)
        self.on_error = on_error
        self.own_steps_from = own_steps_from
        self.last_report: GeometryReport | None = None
        self._folder = RunFolder(Path(logdir))
        self._stage: TrainingStage | None = None
        self._optimizers: list[Optimizer] = []
        self._warned: set[str] = set()
        self._begin = time.perf_counter()
        self._probe_seconds = 0.0

    def observe(
        self,
        module: nn.Module,
        *,
        step: int,
        loss: Tensor | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Record how unevenly the gradient is spread, as it is now in ``.grad``.

        Call it between ``backward()`` and ``optimizer.step()``, at any interval; before clipping,
        and after ``scaler.unscale_(optimizer)`` under float16. Nearly free: some ten passes over
        the gradient.

        Args:
            module: What is trained.
            step: Index of this optimizer step, from 0 on as in the monitors' records.
            loss: Of this step. Loss and learning rates tell :meth:`measure` when it is too early
                for a verdict: in a warm-up, and before the loss has left its start.
            optimizer: Measure the parameters that it steps. Default: all that require grad.
        """
        check_whole("GeometryRecorder", "step", step, 0)
        with self._errors_handled("observe", step):
            inner = unwrap("GeometryRecorder", module)
            chosen = None
            if optimizer is not None:
                optimizer = unwrap_optimizer("GeometryRecorder", optimizer)
                chosen = [p for group in optimizer.param_groups for p in group["params"]]
            self._follow(loss, optimizer)
            parameters = trainable_parameters(inner, chosen)
            device = _device_of(parameters.values(), inner)
            ranks = Ranks(sum_over_processes(device), device)
            sums = sums_over_ranks(list(parameters.values()), ranks, 1.0, *rank_and_size())
            spread = spread_of(sums)
            self._write(
                step,
                quantities.HETEROGENEITY.record_tag,
                spread.scalars,
                list(parameters),
                spread.columns,
                whole=spread.whole,
                histogram=spread.histogram,
            )
            if count := spread.scalars[quantities.NUM_NONFINITE.tag]:
                self._warn_once(
                    "gradients",
                    f"{count:.0f} entries of the gradient are inf or NaN at step {step}. They are "
                    "left out of all numbers but `num_nonfinite`. Look at the loss, or clip and "
                    "lower the learning rate.",
                )

    def measure(
        self,
        module: nn.Module,
        batches: Sequence[Any] | Iterable[Any],
        *,
        step: int,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        **options: Any,
    ) -> GeometryReport | None:
        """Measure what :func:`~lightning_linf.measure_geometry` does, and record it.

        Call it after ``optimizer.step()``, best with two or more of the latest batches: one alone
        tells no error over batches, without which there is no verdict. It takes many times as long
        as a step, so measure every few hundred.

        Args:
            module: What is trained, also as Fabric, Accelerate or DDP have wrapped it.
            batches: What the loss is measured on; with several processes those of this one.
            step: Index of the optimizer step that was made last, from 0 on.
            loss: From module and batch to a scalar. Default: the module's own.
            options: Further arguments of :func:`~lightning_linf.measure_geometry`.

        Returns:
            The report, or None if there was an error and ``on_error`` is "warn".
        """
        check_whole("GeometryRecorder", "step", step, 0)
        begin = time.perf_counter()
        with self._errors_handled("measure", step):
            inner = unwrap("GeometryRecorder", module)
            reduce = sum_over_processes(_device_of(inner.parameters(), inner))
            report = measure_geometry(inner, batches, loss=loss, reduce=reduce, **options)
            about = training_settings(inner, self._optimizers)
            if self._stage is not None:
                about["stage"] = self._stage.now(reduce)
            report = replace(report, settings={**report.settings, **about})
            seconds = time.perf_counter() - begin
            self._probe_seconds += seconds
            training = time.perf_counter() - self._begin - self._probe_seconds
            cost = {
                quantities.PROBE_SECONDS.tag: seconds,
                quantities.PROBE_OVERHEAD.tag: self._probe_seconds / training,
            }
            self._record_geometry(report, step, cost)
            return report
        self._probe_seconds += time.perf_counter() - begin  # an error has ended it
        return None

    def record(self, report: GeometryReport | EdgeReport, *, step: int) -> None:
        """Record a report of :func:`~lightning_linf.measure_geometry` or of ``measure_edge``."""
        check_whole("GeometryRecorder", "step", step, 0)
        with self._errors_handled("record", step):
            if isinstance(report, GeometryReport):
                self._record_geometry(report, step, {quantities.PROBE_SECONDS.tag: report.seconds})
            else:
                tag = quantities.EDGE_OF_STABILITY.record_tag
                seconds = {quantities.EDGE_SECONDS.tag: report.seconds}
                scalars = {**edge_scalars_of(report), **seconds}
                self._write(
                    step, tag, scalars, *_tensors(report.per_tensor, edge_columns_of(report))
                )

    def close(self) -> None:
        """Close the files. ``with GeometryRecorder(...) as recorder`` does so at its end."""
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _follow(self, loss: Tensor | None, optimizer: Optimizer | None) -> None:
        if self._stage is None and (loss is not None or optimizer is not None):
            self._stage = TrainingStage()
        if self._stage is not None:
            self._stage.add_loss(loss)
            if optimizer is not None:
                self._optimizers = [optimizer]
                self._stage.add_step([optimizer])

    def _record_geometry(
        self, report: GeometryReport, step: int, cost: Mapping[str, float]
    ) -> None:
        self.last_report = report
        self._write(
            step,
            quantities.SMOOTHNESS.record_tag,
            {**scalars_of(report), **cost},
            *_tensors(report.per_tensor, columns_of(report)),
            report=report,
        )

    def _write(
        self,
        step: int,
        tag: str,
        scalars: Mapping[str, float],
        names: list[str],
        columns: Mapping[str, Tensor],
        *,
        whole: Mapping[str, Tensor] | None = None,
        histogram: tuple[Tensor, Tensor] | None = None,
        report: GeometryReport | None = None,
    ) -> None:
        if rank_and_size()[0] == 0:
            content = (scalars, names, columns, whole or {}, histogram, report)
            self._folder.write(make_record(step, tag, *content, self.own_steps_from))

    @contextmanager
    def _errors_handled(self, task: str, step: int) -> Iterator[None]:
        try:
            yield
        except (RestoreError, RankLostError):  # the training would go on as another one
            raise
        except Exception as error:
            if self.on_error == "raise":
                raise
            kind, cause = kind_and_cause(error)
            self._warn_once(kind, f"could not {task} at step {step} and goes on without. {cause}")
            # What the failed frames hold, a graph say, would stay until the collector runs.
            traceback.clear_frames(error.__traceback__)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(f"GeometryRecorder: {message}")


def _device_of(parameters: Iterable[Tensor], module: nn.Module) -> torch.device:
    for p in parameters:
        return p.device
    raise ValueError(
        f"GeometryRecorder: expected trainable parameters in {type(module).__name__}, got none. "
        "Set requires_grad on some, and pass the optimizer that steps them, or none."
    )


def _tensors(
    rows: Mapping[str, object], columns: Mapping[str, list[float]]
) -> tuple[list[str], dict[str, Tensor]]:
    """Give names of parameter tensors, and columns of them; none if there are no rows."""
    return list(rows), {name: torch.tensor(values) for name, values in columns.items() if rows}
