"""What a loss changes outside its module, on the trainer's side, put back."""

import operator
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_linf.probe.errors import RestoreError
from lightning_linf.probe.isolation import Restore, capture_container, has_state

_ATOMS = (int, float, complex, str, bytes, type(None), type)
_MUTABLE = (dict, list, set, deque)


@contextmanager
def trainer_unchanged(module: nn.Module) -> Iterator[None]:
    """Put back what evaluating a loss changes on the trainer that a module is attached to.

    That is, of the trainer itself, its loops and their progress, ``callback_metrics`` and its like,
    optimizers (learning rates and all of ``param_groups``, ``.grad``), learning rate schedulers,
    callbacks and datamodule: every attribute, and what is reachable from it through containers and
    plain objects; of tensors only single numbers. Larger ones (moments, parameters) are not copied
    but watched. Open around one evaluation, so that what happens between evaluations, such as a
    signal that asks the training to stop, remains.

    Raises:
        RestoreError: On leaving, if a larger tensor was changed in place, by its name.
    """
    trainer = getattr(module, "_trainer", None)
    if trainer is None:
        yield
        return
    state = _TrainerState(trainer, module)
    try:
        yield
    finally:
        state.restore()


class _TrainerState:
    """Every container on the trainer's side with its items, and every tensor with its version."""

    def __init__(self, trainer: Any, module: nn.Module) -> None:
        self._steps: list[Restore] = []
        self._watched: list[tuple[str, Tensor, int]] = []
        parts = [
            *trainer.optimizers,
            *trainer.lr_scheduler_configs,
            *(c for c in trainer.callbacks if not _is_ours(c)),
            getattr(trainer, "datamodule", None),
            trainer.fit_loop,
            trainer._logger_connector,  # holds callback_metrics
            trainer,
        ]
        self._parts = {id(part) for part in parts}
        self._optimizers = [_OptimizerTensors(optimizer) for optimizer in trainer.optimizers]
        seen = {id(module)}  # whose own state is put back elsewhere
        for tensors in self._optimizers:
            seen |= tensors.seen
        for part in parts:
            self._walk(type(part).__name__, part, seen)

    def restore(self) -> None:
        """Put back what differs."""
        for step in self._steps:
            step()
        changed = [path for path, tensor, version in self._watched if tensor._version != version]
        for optimizer in self._optimizers:
            changed += optimizer.restore()
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise RestoreError(
                "probe: expected a loss that leaves the training as it was, but evaluating it "
                f"changed {', '.join(changed[:3])}{more} in place. Define probe_loss(batch) that "
                "returns the loss and changes nothing."
            )

    def _walk(self, name: str, part: Any, seen: set[int]) -> None:
        pending: list[tuple[str, Any]] = [(name, part)]
        while pending:
            path, value = pending.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                self._keep(path, value)
            if isinstance(value, _MUTABLE):
                self._steps.append(_restore_if_changed(value))
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, dict):
                items = dict.items(value)
            elif isinstance(value, (list, tuple, set, frozenset, deque)):
                items = enumerate(value)
            elif hasattr(value, "__dict__") and self._is_walked(value):
                pending.append((path, value.__dict__))
            pending += [(f"{path}.{k}", item) for k, item in items if not isinstance(item, _ATOMS)]

    def _is_walked(self, value: Any) -> bool:
        if id(value) in self._parts or isinstance(value, (Optimizer, LRScheduler)):
            return True
        return ".loops." in type(value).__module__ or has_state(value)

    def _keep(self, path: str, tensor: Tensor) -> None:
        if tensor.is_inference():
            return
        version = tensor._version
        if tensor.numel() > 1:
            self._watched.append((path, tensor, version))
            return
        saved = tensor.detach().clone()

        def restore() -> None:
            if tensor._version != version:
                tensor.data.copy_(saved)

        self._steps.append(restore)


class _OptimizerTensors:
    """Parameters, gradients and moments of an optimizer: many, so no path is made for each."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._gradients = [p.grad for p in self._params]
        self._tensors = self._present()
        self._versions = [t._version for t in self._tensors]
        self.seen = {id(optimizer.state), *map(id, self._params)}
        """Identities of what is watched here."""

    def restore(self) -> list[str]:
        """Put back gradients that were replaced; tell what else has changed."""
        for p, gradient in zip(self._params, self._gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        present = self._present()
        is_same = len(present) == len(self._tensors) and all(
            map(operator.is_, present, self._tensors)
        )
        if is_same and [t._version for t in present] == self._versions:
            return []
        return [f"what {type(self._optimizer).__name__} steps or keeps"]

    def _present(self) -> list[Tensor]:
        states = [s for s in self._optimizer.state.values() if isinstance(s, dict)]
        moments = [moment for state in states for moment in state.values()]
        every = (*self._params, *self._gradients, *moments)
        return [t for t in every if isinstance(t, Tensor) and not t.is_inference()]


def _is_ours(callback: Any) -> bool:
    """Whether it is a monitor, whose history would be walked for nothing."""
    return type(callback).__module__.startswith("lightning_linf.")


def _restore_if_changed(value: Any) -> Restore:
    saved, put_back = _items(value), capture_container(value)

    def restore() -> None:
        present = _items(value)
        if len(present) != len(saved) or not all(map(operator.is_, present, saved)):
            put_back()

    return restore


def _items(value: Any) -> list[Any]:
    kind: Any = next(k for k in _MUTABLE if isinstance(value, k))
    return [*kind.__iter__(value), *(kind.values(value) if kind is dict else ())]
