"""What every geometry monitor shares: when to measure, where numbers go, what errors do."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_linf import quantities
from lightning_linf.argument_checks import check_choice, check_whole
from lightning_linf.callbacks._due_steps import DueSteps
from lightning_linf.callbacks._recording import (
    Tasks,
    closing,
    opening,
    start_jsonl,
    writers,
)
from lightning_linf.callbacks._trainer import is_dev_run, logged_step
from lightning_linf.distributed.heartbeat import phase
from lightning_linf.errors import RankLostError, RestoreError
from lightning_linf.recorder.entry import make_record
from lightning_linf.recorder.failures import kind_and_cause
from lightning_linf.report import GeometryReport
from lightning_linf.swap.trainer import check_strategy

OnError = Literal["warn", "raise"]


class GeometryMonitor(Callback):
    """Base of the monitors: when to measure, where the numbers go, and what an error does.

    A monitor of your own sets ``record_tag`` and overrides the hook in which it measures. There it
    asks :meth:`is_due`, measures within :meth:`errors_handled`, and gives its numbers to
    :meth:`record`. If a step cannot be measured, it calls :meth:`postpone`, so that the next step
    is due. It overrides :meth:`release` to free what it keeps for a measurement. It calls the hooks
    that are defined here by ``super()``. To choose other steps, for this monitor or for one of
    ours, override :meth:`should_measure`.

    In ``on_fit_start`` the first monitor of a trainer writes a layout for TensorBoard's custom
    scalars. TensorBoard shows the last layout that was written, so write your own one later, in
    ``on_train_start`` for example.

    Args:
        every_n_steps: Measure at every optimizer step whose number, counted from 1, is a multiple
            of this. Lightning logs at the same steps if ``log_every_n_steps`` has the same value.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        name: If several monitors log the same quantities, all but one need a name. It becomes part
            of their tags and tells their states in checkpoints apart.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for FSDPStrategy and DeepSpeed, and for another
            monitor with the same tags.

    Example:
        >>> class GradientNormMonitor(GeometryMonitor):
        ...     record_tag = "geometry/gradient_norm_per_tensor"
        ...
        ...     def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        ...         if self.is_due(trainer):
        ...             with self.errors_handled(trainer, "measure"):
        ...                 gradients = {n: p.grad for n, p in pl_module.named_parameters()}
        ...                 norms = torch.stack([g.norm() for g in gradients.values()])
        ...                 scalars = {"geometry/gradient_norm": float(norms.norm())}
        ...                 self.record(trainer, scalars, {"norm": norms}, list(gradients))
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientNormMonitor(every_n_steps=10)], logger=False)
    """

    record_tag: str
    """Tag of the record of each parameter tensor; it starts with "geometry/"."""
    needs = "a loss and finite gradients. Look at training_step and the gradient scaler."
    """What a step must have to be measured, and what to do if none has it: two sentences."""
    max_history = 1000
    """How many of the latest measurements ``history`` keeps, also in checkpoints."""

    def __init__(self, every_n_steps: int = 50, on_error: OnError = "warn", name: str = "") -> None:
        caller = type(self).__name__
        check_whole(caller, "every_n_steps", every_n_steps, 1)
        check_choice(caller, "on_error", on_error, get_args(OnError))
        quantities.check_name(caller, name)
        self.name = name
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.history: list[dict[str, Any]] = []
        self._warned: set[str] = set()
        self._num_failures = 0
        self._failures_before = 0  # in earlier trainings
        self._num_measured = 0  # in this training and what it resumes
        self._due_steps = DueSteps()

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
        self.check_strategy(trainer)
        mine = (self.record_tag, self.name)
        twins = [m for m in _monitors(trainer) if (m.record_tag, m.name) == mine]
        if len(twins) > 1:
            raise MisconfigurationException(
                f"{type(self).__name__}: expected one callback of this class and `name` in the "
                f"trainer, got {len(twins)}, which would log under the same tags. Keep one, or "
                f"give the others a name, as in {type(self).__name__}(..., name='train')."
            )
        if trainer.barebones:
            self.warn_once(
                "barebones", "Trainer(barebones=True) logs nothing, so nothing is measured."
            )
        elif not is_dev_run(trainer) and 0 <= trainer.max_steps < self.every_n_steps:
            self.warn_once(
                "never",
                f"`every_n_steps`={self.every_n_steps} is more than the {trainer.max_steps} steps "
                "of this training, so nothing will be measured. Lower it.",
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitors = _monitors(trainer)
        if monitors[0] is self and not trainer.barebones:
            self._do(trainer, opening(trainer, monitors))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due_steps = DueSteps()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not in on_train_start, where the counter of a resumed training is still one behind.
        if self._due_steps.begin(logged_step(trainer)):
            with self.errors_handled(trainer, "continue geometry.jsonl"):
                start_jsonl(trainer, logged_step(trainer))

    def check_strategy(self, trainer: Trainer) -> None:
        """Refuse a strategy under which this cannot be measured. Made to override.

        Raises:
            MisconfigurationException: Here for FSDPStrategy and DeepSpeed.
        """
        check_strategy(type(self).__name__, trainer)

    def should_measure(self, trainer: Trainer) -> bool:
        """Decide before an optimizer step whether to measure it. Made to override.

        Every rank must decide alike. The base class chooses multiples of ``every_n_steps``; if a
        multiple passes without an optimizer step, as it may under manual optimization, it chooses
        the next optimizer step.
        """
        if trainer.barebones:
            return False
        if is_dev_run(trainer):
            return not self.history
        return self._due_steps.ends_interval(logged_step(trainer), self.every_n_steps)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether to measure this step; asks :meth:`should_measure` once in it."""
        return self._due_steps.is_due(logged_step(trainer), lambda: self.should_measure(trainer))

    def postpone(self) -> None:
        """Measure at the next step instead of this one, which lacks something."""
        self._due_steps.postpone()

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
        entry = {tag.removeprefix(quantities.PREFIX) + suffix: v for tag, v in scalars.items()}
        self.history.append(
            {"step": step, **entry, "tensor_names": tensor_names, "per_tensor": columns}
        )
        del self.history[: -self.max_history]
        self._num_measured += 1
        tagged = {quantities.of_monitor(tag, self.name) + suffix: v for tag, v in scalars.items()}
        trainer.callback_metrics.update({tag: torch.tensor(v) for tag, v in tagged.items()})
        for logger in trainer.loggers:
            with self.errors_handled(trainer, f"log to {type(logger).__name__}"):
                logger.log_metrics(tagged, step=step)
        record_tag = f"{self.record_tag}/{self.name}" if self.name else self.record_tag
        entry_on_disk = make_record(
            step, record_tag + suffix, tagged, tensor_names, columns, whole or {}, histogram, report
        )
        self._do(trainer, writers(trainer, entry_on_disk))

    @contextmanager
    def errors_handled(self, trainer: Trainer, task: str) -> Iterator[None]:
        """Do with an error what ``on_error`` says.

        Args:
            trainer: The trainer, at the present step.
            task: What is done inside, for the warning: "could not measure at step 9".

        Raises:
            RestoreError: In any case: the training would go on as another one.
            RankLostError: In any case, too: collectives of the training would meet others.
        """
        try:
            with phase(f"{type(self).__name__}: {task} at step {logged_step(trainer)}"):
                yield
        except (RestoreError, RankLostError):
            raise
        except Exception as error:
            if self.on_error == "raise":
                raise
            self._num_failures += 1
            kind, cause = kind_and_cause(error)
            self.warn_once(
                kind,
                f"could not {task} at step {logged_step(trainer)} and goes on without. {cause}",
            )
            # What the failed frames hold, a graph say, would stay until the collector runs.
            traceback.clear_frames(error.__traceback__)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.release()
        self._close(trainer)
        if self._num_failures > 1:
            rank_zero_warn(
                f"{type(self).__name__}: {self._num_failures} failures in all, and "
                f"{len(self.history)} measurements in `history`; each cause was reported once."
            )
        made_steps = self._due_steps.first not in (None, logged_step(trainer))
        has_failed = self._num_failures > self._failures_before
        if made_steps and not (self._num_measured or has_failed or trainer.barebones):
            why = self._due_steps.why_none(
                logged_step(trainer),
                self.every_n_steps,
                needs=self.needs,
                chooses_itself=type(self).should_measure is not GeometryMonitor.should_measure,
            )
            self.warn_once("never", why)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.release()
        try:
            self._close(trainer)
        except Exception as error:  # with on_error="raise"; it must not hide the first one
            rank_zero_warn(f"{type(self).__name__}: {error}")

    def _close(self, trainer: Trainer) -> None:
        monitors = _monitors(trainer)
        if monitors[0] is self and any(monitor.history for monitor in monitors):
            self._do(trainer, closing(trainer))

    def _do(self, trainer: Trainer, tasks: Tasks) -> None:
        for task, act in tasks:
            with self.errors_handled(trainer, task):
                act()

    def release(self) -> None:
        """Free what is kept for a measurement, as the training has ended. Made to override."""

    def warn_once(self, kind: str, message: str) -> None:
        """Warn on rank zero, of one kind once in a training."""
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
