"""What every geometry monitor shares: when to measure, where numbers go, what errors do."""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import tags
from lightning_linf.callbacks import _recording
from lightning_linf.callbacks._lightning import is_dev_run, logged_step
from lightning_linf.callbacks._unmeasured import why_nothing
from lightning_linf.errors import RestoreError
from lightning_linf.lightning_packages import is_either
from lightning_linf.partition.pieces import trainable_parameters
from lightning_linf.probe.arguments import check_choice, check_whole
from lightning_linf.report import GeometryReport

OnError = Literal["warn", "raise"]


def optimized_parameters(*optimizers: Optimizer) -> list[nn.Parameter]:
    """List what optimizers step."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [p for group in groups for p in group["params"]]


def outside_parameters(module: nn.Module, *optimizers: Optimizer) -> dict[str, nn.Parameter]:
    """Name what optimizers step and ``module.named_parameters()`` does not list, by position."""
    listed = {id(p) for p in module.parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {
        f"optimizer.{i}.{j}": p
        for i, group in enumerate(groups)
        for j, p in enumerate(group["params"])
        if p.requires_grad and id(p) not in listed
    }


def named_optimized_parameters(
    module: nn.Module, *optimizers: Optimizer
) -> dict[str, nn.Parameter]:
    """Name what optimizers step and requires grad."""
    inside = trainable_parameters(module, optimized_parameters(*optimizers))
    return {**inside, **outside_parameters(module, *optimizers)}


class GeometryMonitor(Callback):
    """Base of the monitors; a monitor decides what to measure and calls :meth:`record`.

    In ``on_fit_start`` the first one writes a layout for TensorBoard's custom scalars. The last
    layout counts, so one of your own is to be written later, in ``on_train_start`` say.

    Args:
        every_n_steps: Measure at optimizer steps divisible by this, counted from 1, which are the
            steps at which Lightning logs when ``log_every_n_steps`` is the same.
        on_error: "warn" says once what went wrong and lets the training go on; "raise" ends it.
        name: Where several monitors log the same quantities, all but one need a name, by which
            their tags and their states in checkpoints differ.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy and DeepSpeed, and for another
            monitor with the same tags.
    """

    record_tag: str  # of the per-tensor record
    _what_is_needed = "a loss and finite gradients. Look at training_step and the gradient scaler."
    max_history = 1000
    """How many of the latest measurements ``history`` keeps, also in checkpoints."""

    def __init__(self, every_n_steps: int, on_error: OnError, name: str = "") -> None:
        caller = type(self).__name__
        check_whole(caller, "every_n_steps", every_n_steps, 1)
        check_choice(caller, "on_error", on_error, get_args(OnError))
        tags.check_name(caller, name)
        self.name = name
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.history: list[dict[str, Any]] = []
        self._warned: set[str] = set()
        self._num_failures = 0
        self._failures_before = 0  # in earlier trainings
        self._num_measured = 0  # in this training and what it resumes
        self._first_step: int | None = None  # of this training
        self._asked_step = -1  # the last step at which should_measure was asked
        self._due_step: int | None = None  # the last step at which a measurement was due
        self._is_postponed = False  # it could not be measured, so the next one is due

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name) if self.name else super().state_key

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._warned, self._num_measured = set(), 0  # another trainer may have been before
        self._failures_before = self._num_failures
        if is_either(trainer.strategy, FSDPStrategy, DeepSpeedStrategy):
            raise MisconfigurationException(
                f"{type(self).__name__}: expected whole parameters, or those that fully_shard "
                f"makes, got {type(trainer.strategy).__name__}, whose flat pieces do not tell "
                "where they belong. Use Trainer(strategy='ddp'), or ModelParallelStrategy with "
                "fully_shard in configure_model, or remove the callback."
            )
        mine = (self.record_tag, self.name)
        twins = [m for m in _monitors(trainer) if (m.record_tag, m.name) == mine]
        if len(twins) > 1:
            raise MisconfigurationException(
                f"{type(self).__name__}: expected one callback of this class and `name` in the "
                f"trainer, got {len(twins)}, which would log under the same tags. Keep one, or "
                f"give the others a name, as in {type(self).__name__}(..., name='train')."
            )
        if trainer.barebones:
            self._warn_once(
                "barebones", "Trainer(barebones=True) logs nothing, so nothing is measured."
            )
        elif not is_dev_run(trainer) and 0 <= trainer.max_steps < self.every_n_steps:
            self._warn_once(
                "never",
                f"`every_n_steps`={self.every_n_steps} is more than the {trainer.max_steps} steps "
                "of this training, so nothing will be measured. Lower it.",
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitors = _monitors(trainer)
        if monitors[0] is self and not trainer.barebones:
            with self._errors_handled(trainer, "lay out TensorBoard's custom scalars"):
                _recording.write_layout(trainer, monitors)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked_step, self._due_step, self._is_postponed = -1, None, False
        self._first_step = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._due_step is None:  # in on_train_start a resumed counter is still one behind
            self._first_step = logged_step(trainer)
            self._due_step = self._first_step - 1
            with self._errors_handled(trainer, "continue geometry.jsonl"):
                _recording.start_jsonl(trainer, logged_step(trainer))

    def should_measure(self, trainer: Trainer) -> bool:
        """Decide before an optimizer step; every rank must decide alike. Made to override.

        The base measures at the first optimizer step in every ``every_n_steps`` that ends them:
        under manual optimization a batch may pass without a step.
        """
        if trainer.barebones:
            return False
        if is_dev_run(trainer):
            return not self.history
        assert self._due_step is not None  # a batch has started
        intervals = (logged_step(trainer) + 1) // self.every_n_steps
        return intervals > (self._due_step + 1) // self.every_n_steps

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether to measure this step; asks ``should_measure`` once in it."""
        step = logged_step(trainer)
        if step != self._asked_step:
            self._asked_step = step
            if self.should_measure(trainer) or self._is_postponed:
                self._due_step, self._is_postponed = step, False
        return step == self._due_step

    def _postpone(self) -> None:
        """Measure at the next step instead."""
        self._is_postponed = True

    def record(
        self,
        trainer: Trainer,
        scalars: Mapping[str, float],
        per_tensor: Mapping[str, Tensor],
        tensor_names: list[str],
        *,
        suffix: str = "",
        whole: Mapping[str, Tensor] | None = None,
        histogram: tuple[Tensor, Tensor] | None = None,
        report: GeometryReport | None = None,
    ) -> None:
        """Send one measurement to ``history``, every logger and ``trainer.callback_metrics``.

        On rank zero also to event files and to `geometry.jsonl`, which holds all of it.

        Args:
            trainer: The trainer, at the step that was measured.
            scalars: By tag.
            per_tensor: Columns of shape (T,) or (T, q), one row for each of ``tensor_names``.
            tensor_names: Names of the T parameter tensors.
            suffix: Added to every tag, to tell several records of one step apart.
            whole: The columns of all parameters together, of shape () or (q,).
            histogram: Of log10|g|: edges (B + 1,) and counts (B,).
            report: What the scalars come from. It is kept in event files and `geometry.jsonl`.
        """
        step = logged_step(trainer)
        if self.history and self.history[-1]["tensor_names"] == tensor_names:
            tensor_names = self.history[-1]["tensor_names"]  # one list for all records
        columns = {name: column.detach().float().cpu() for name, column in per_tensor.items()}
        entry = {tag.removeprefix(tags.PREFIX) + suffix: value for tag, value in scalars.items()}
        self.history.append(
            {"step": step, **entry, "tensor_names": tensor_names, "per_tensor": columns}
        )
        del self.history[: -self.max_history]
        self._num_measured += 1
        tagged = {tags.of_monitor(tag, self.name) + suffix: v for tag, v in scalars.items()}
        trainer.callback_metrics.update({tag: torch.tensor(v) for tag, v in tagged.items()})
        for logger in trainer.loggers:
            with self._errors_handled(trainer, f"log to {type(logger).__name__}"):
                logger.log_metrics(tagged, step=step)
        record_tag = f"{self.record_tag}/{self.name}" if self.name else self.record_tag
        entry_on_disk = _recording.make_record(
            step, record_tag + suffix, tagged, tensor_names, columns, whole or {}, histogram, report
        )
        for task, write in _recording.writers(trainer, entry_on_disk):
            with self._errors_handled(trainer, task):
                write()

    @contextmanager
    def _errors_handled(self, trainer: Trainer, task: str) -> Iterator[None]:
        try:
            yield
        except RestoreError:
            raise  # to go on would be another training
        except Exception as error:
            if self.on_error == "raise":
                raise
            self._num_failures += 1
            cause = f"{type(error).__name__}: {error}"
            self._warn_once(
                re.sub(r"[-+\d.e]+|inf|nan", "", cause),  # the same but for numbers
                f"could not {task} at step {logged_step(trainer)} and goes on without. {cause}",
            )
            # What the failed frames hold, a graph say, would stay until the collector runs.
            traceback.clear_frames(error.__traceback__)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitors = _monitors(trainer)
        if monitors[0] is self and any(monitor.history for monitor in monitors):
            with self._errors_handled(trainer, "show the run among TensorBoard's HPARAMS"):
                _recording.write_session(trainer)
        if self._num_failures > 1:
            rank_zero_warn(
                f"{type(self).__name__}: {self._num_failures} failures in all, and "
                f"{len(self.history)} measurements in `history`; each cause was reported once."
            )
        made_steps = self._first_step not in (None, logged_step(trainer))
        has_failed = self._num_failures > self._failures_before
        if made_steps and not (self._num_measured or has_failed or trainer.barebones):
            assert self._first_step is not None
            why = why_nothing(
                self._first_step,
                logged_step(trainer),
                self.every_n_steps,
                passed_over=self._what_is_needed if self._is_postponed else None,
                chooses_itself=type(self).should_measure is not GeometryMonitor.should_measure,
            )
            self._warn_once("never", why)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(f"{type(self).__name__}: {message}")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self.history)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self._num_measured = len(self.history)


def _monitors(trainer: Trainer) -> list[GeometryMonitor]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set in its __init__
    return [callback for callback in callbacks if isinstance(callback, GeometryMonitor)]
