"""What every geometry monitor shares: when to measure, where numbers go, what errors do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_linf.callbacks._lightning import is_dev_run, logged_step
from lightning_linf.tags import PREFIX
from lightning_linf.tensorboard.writer import write_per_tensor

OnError = Literal["warn", "raise"]


class GeometryMonitor(Callback):
    """Base of the monitors; a monitor decides what to measure and calls :meth:`record`.

    Args:
        every_n_steps: Measure at optimizer steps divisible by this, counted from 1, which are the
            steps at which Lightning logs when ``log_every_n_steps`` is the same.
        on_error: "warn" says once what went wrong and lets the training go on; "raise" ends it.

    Raises:
        ValueError: If an argument has a wrong value.
        MisconfigurationException: In ``setup``, for strategies that shard parameters.
    """

    record_tag: str  # of the per-tensor record in event files

    def __init__(self, every_n_steps: int, on_error: OnError) -> None:
        name = type(self).__name__
        if every_n_steps < 1:
            raise ValueError(f"{name}: expected `every_n_steps` >= 1, got {every_n_steps}.")
        if on_error not in ("warn", "raise"):
            raise ValueError(f'{name}: expected `on_error` "warn" or "raise", got {on_error!r}.')
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.history: list[dict[str, Any]] = []
        self._warned: set[str] = set()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
            raise MisconfigurationException(
                f"{type(self).__name__}: expected whole parameters on every rank (one device or "
                f"DDP), got {type(trainer.strategy).__name__}, which shards them. Use "
                "Trainer(strategy='ddp') or remove the callback."
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

    def should_measure(self, trainer: Trainer) -> bool:
        """Decide at the present optimizer step; every rank must decide alike. Made to override."""
        if trainer.barebones:
            return False
        return is_dev_run(trainer) or (logged_step(trainer) + 1) % self.every_n_steps == 0

    def record(
        self,
        trainer: Trainer,
        scalars: Mapping[str, float],
        per_tensor: Mapping[str, Tensor],
        tensor_names: list[str],
        *,
        suffix: str = "",
    ) -> None:
        """Send one measurement to ``history``, every logger and ``trainer.callback_metrics``.

        Args:
            trainer: The trainer, at the step that was measured.
            scalars: By tag.
            per_tensor: Columns of shape (T,) or (T, q), one row for each of ``tensor_names``.
            tensor_names: Names of the T parameter tensors.
            suffix: Added to every tag, to tell several records of one step apart.
        """
        step = logged_step(trainer)
        if self.history and self.history[-1]["tensor_names"] == tensor_names:
            tensor_names = self.history[-1]["tensor_names"]  # one list for all records
        columns = {name: column.detach().float().cpu() for name, column in per_tensor.items()}
        entry = {tag.removeprefix(PREFIX) + suffix: value for tag, value in scalars.items()}
        self.history.append(
            {"step": step, **entry, "tensor_names": tensor_names, "per_tensor": columns}
        )
        tagged = {tag + suffix: value for tag, value in scalars.items()}
        trainer.callback_metrics.update({tag: torch.tensor(v) for tag, v in tagged.items()})
        for logger in trainer.loggers:
            logger.log_metrics(tagged, step=step)
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                write_per_tensor(
                    logger.experiment, self.record_tag + suffix, tensor_names, columns, step
                )

    @contextmanager
    def _errors_handled(self, trainer: Trainer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self._warn_once(
                type(error).__name__,
                f"could not measure at step {logged_step(trainer)} and leaves it out; later "
                f"failures of this kind are not reported. {type(error).__name__}: {error}",
            )

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
