"""The recorder as a callback of transformers' Trainer."""

import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from lightning_linf.argument_checks import check_callable, check_whole
from lightning_linf.extras import needing
from lightning_linf.recorder.recorder import GeometryRecorder, OnError
from lightning_linf.report import GeometryReport

_CALLER = "GeometryCallback"
with needing("transformers", _CALLER):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# What the Trainer hands to the model of more than this batch: the loss of a microbatch is a sum
# over all of them with it, and a mean over its own tokens without.
_OF_SEVERAL_BATCHES = "num_items_in_batch"


class GeometryCallback(TrainerCallback):
    """Record the geometry in a training of transformers' Trainer, as :class:`GeometryRecorder`.

    When: the gradient before an optimizer step, after clipping, which makes all of it smaller by
    one factor: of the numbers only ``median_log10_grad`` and the quantiles of log10|g| change. The
    landscape after the step, on the latest batches. A forward hook on the model keeps these and
    their losses while the Trainer trains. Records count optimizer steps from 0, as those of the
    monitors do, so step 10 of the Trainer's logs is 9 there; the panels show both as step 10.

    Args:
        every_n_steps: Measure the landscape at every step whose number is a multiple of this.
        observe_every_n_steps: Record the gradient at multiples of this, which is nearly free.
        num_batches: Measure the mean loss over this many of the latest batches. With one there is
            no error over batches, and so no verdict.
        logdir: Where to write. Default: ``logging_dir`` of the arguments or, where they have none,
            ``TENSORBOARD_LOGGING_DIR`` of the environment, where the Trainer's own event file goes,
            or "geometry" in their ``output_dir``. In one folder with that file, the panels show
            the Trainer's losses beside the geometry.
        loss: From model and batch (the keyword arguments of the model) to a scalar. Default: the
            ``loss`` of what the model returns.
        on_error: "warn" warns once of each error and lets the training go on; "raise" ends it.
        options: Further arguments of :func:`~lightning_linf.measure_geometry`.

    Raises:
        ValueError: If an argument has a wrong value.

    Example:
        >>> callback = GeometryCallback(every_n_steps=500, num_batches=4)
        >>> # transformers.Trainer(model, arguments, ..., callbacks=[callback]).train()
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        observe_every_n_steps: int = 50,
        num_batches: int = 2,
        logdir: str | Path | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        on_error: OnError = "warn",
        **options: Any,
    ) -> None:
        check_whole(_CALLER, "every_n_steps", every_n_steps, 1)
        check_whole(_CALLER, "observe_every_n_steps", observe_every_n_steps, 1)
        check_whole(_CALLER, "num_batches", num_batches, 1)
        check_callable(_CALLER, "loss", loss, "Give a function of model and batch.")
        self.every_n_steps = every_n_steps
        self.observe_every_n_steps = observe_every_n_steps
        self.logdir = logdir
        self.loss = loss or _own_loss
        self.on_error: OnError = on_error
        self.options = options
        self.recorder: GeometryRecorder | None = None
        self._batches: deque[dict[str, Any]] = deque(maxlen=num_batches)
        self._latest_loss: Tensor | None = None
        self._hook: Any = None

    @property
    def last_report(self) -> GeometryReport | None:
        """The latest report of the landscape."""
        return None if self.recorder is None else self.recorder.last_report

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logdir = self.logdir or getattr(args, "logging_dir", None)
        logdir = logdir or os.environ.get("TENSORBOARD_LOGGING_DIR")
        self._release()  # what a training that an error has ended has left
        self.recorder = GeometryRecorder(
            logdir or Path(str(args.output_dir), "geometry"),
            on_error=self.on_error,
            own_steps_from=1,
        )
        self._hook = kwargs["model"].register_forward_hook(self._keep, with_kwargs=True)

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.recorder is not None
        if (state.global_step + 1) % self.observe_every_n_steps == 0:
            self.recorder.observe(
                kwargs["model"],
                step=state.global_step,
                loss=self._latest_loss,
                optimizer=kwargs["optimizer"],
            )

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.recorder is not None
        if state.global_step % self.every_n_steps == 0:
            model, batches = kwargs["model"], list(self._batches)
            self._unhook()  # a probe runs the model, too
            try:
                self.recorder.measure(
                    model, batches, step=state.global_step - 1, loss=self.loss, **self.options
                )
            finally:
                self._hook = model.register_forward_hook(self._keep, with_kwargs=True)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._release()

    def _keep(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if model.training and not args:
            kept = {name: value for name, value in kwargs.items() if name != _OF_SEVERAL_BATCHES}
            self._batches.append(kept)
            loss = output.get("loss") if isinstance(output, Mapping) else None
            self._latest_loss = None if loss is None else loss.detach()

    def _release(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
        self._unhook()
        self._batches.clear()
        self._latest_loss = None

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    output = model(**batch)
    loss = output["loss"] if isinstance(output, Mapping) else output[0]  # as the Trainer takes it
    assert isinstance(loss, Tensor)
    return loss
