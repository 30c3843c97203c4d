"""What a loss changes outside its module, on the trainer's side, put back."""

import operator
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_linf.probe.errors import RestoreError
from lightning_linf.probe.isolation import has_state

_ATOMS = (int, float, complex, str, bytes, type(None), type)
_MUTABLE = (dict, list, set, deque)
_MOST_ENTRIES = 4096  # of a tensor that is copied at each evaluation


class TrainerState:
    """What is reachable from the trainer that a module is attached to, if it is.

    That is, of the trainer itself, its loops and their progress, ``callback_metrics`` and its like,
    optimizers, learning rate schedulers, callbacks and datamodule: every attribute, and what is
    reachable from it through containers and plain objects.
    """

    def __init__(self, module: nn.Module) -> None:
        self._containers: list[Any] = []
        self._small: list[Tensor] = []
        self._large: list[tuple[str, Tensor]] = []
        self._optimizers: list[Optimizer] = []
        trainer = getattr(module, "_trainer", None)
        if trainer is None:
            return
        self._optimizers = list(trainer.optimizers)
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
        seen = {id(module)}  # whose own state is put back elsewhere
        for optimizer in trainer.optimizers:  # too many for a name each
            seen |= {id(optimizer.state), *(id(p) for p in _parameters(optimizer))}
        for part in parts:
            self._walk(type(part).__name__, part, seen)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put back what one evaluation of the loss changes.

        Learning rates and all else in ``param_groups``, attributes and containers are put back, and
        ``.grad``; of tensors those of up to 4,096 entries. Larger ones, parameters and moments are
        not copied but watched. What happens between evaluations, such as a signal that asks the
        training to stop, remains.

        Raises:
            RestoreError: On leaving, if one of these was changed in place.
        """
        items = [_items(container) for container in self._containers]
        small = [(t, t._version, t.detach().clone()) for t in self._small]
        versions = [t._version for _, t in self._large]
        optimizers = [_OptimizerTensors(optimizer) for optimizer in self._optimizers]
        try:
            yield
        finally:
            for container, saved in zip(self._containers, items, strict=True):
                if not _is_same(_items(container), saved):
                    _put_back(container, saved)
            for tensor, version, value in small:
                if tensor._version != version:
                    tensor.data.copy_(value)
            changed = [
                path
                for (path, tensor), version in zip(self._large, versions, strict=True)
                if tensor._version != version
            ]
            for optimizer in optimizers:
                changed += optimizer.restore()
            _require_none(changed)

    def _walk(self, name: str, part: Any, seen: set[int]) -> None:
        pending: list[tuple[str, Any]] = [(name, part)]
        while pending:
            path, value = pending.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, _MUTABLE):
                self._containers.append(value)
            if isinstance(value, Tensor):
                if value.numel() <= _MOST_ENTRIES and not value.is_inference():
                    self._small.append(value)
                elif not value.is_inference():
                    self._large.append((path, value))
            elif isinstance(value, dict):
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


class _OptimizerTensors:
    """Parameters, gradients and moments of an optimizer, before an evaluation."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._params = _parameters(optimizer)
        self._gradients = [p.grad for p in self._params]
        self._tensors = self._present()
        self._versions = [t._version for t in self._tensors]

    def restore(self) -> list[str]:
        """Put back gradients that were replaced; tell whether anything else has changed."""
        for p, gradient in zip(self._params, self._gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        present = self._present()
        if _is_same(present, self._tensors) and [t._version for t in present] == self._versions:
            return []
        return [f"what {type(self._optimizer).__name__} steps or keeps"]

    def _present(self) -> list[Tensor]:
        states = [s for s in self._optimizer.state.values() if isinstance(s, dict)]
        moments = [moment for state in states for moment in state.values()]
        every = (*self._params, *self._gradients, *moments)
        return [t for t in every if isinstance(t, Tensor) and not t.is_inference()]


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_ours(callback: Any) -> bool:
    """Whether it is a monitor of ours, whose long history would be walked for nothing."""
    return type(callback).__module__.startswith("lightning_linf.")


def _items(container: Any) -> list[Any]:
    kind = _kind(container)
    values = kind.values(container) if isinstance(container, dict) else ()
    return [*kind.__iter__(container), *values]


def _is_same(present: list[Any], saved: list[Any]) -> bool:
    return len(present) == len(saved) and all(map(operator.is_, present, saved))


def _put_back(container: Any, saved: list[Any]) -> None:
    kind = _kind(container)
    kind.clear(container)
    if isinstance(container, dict):
        half = len(saved) // 2
        for key, item in zip(saved[:half], saved[half:], strict=True):
            kind.__setitem__(container, key, item)
    elif isinstance(container, set):
        kind.update(container, saved)
    else:
        kind.extend(container, saved)


def _kind(container: Any) -> Any:
    """Give the base class, whose methods subclasses may forbid or extend."""
    return next(kind for kind in (OrderedDict, *_MUTABLE) if isinstance(container, kind))


def _require_none(changed: list[str]) -> None:
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RestoreError(
            "probe: expected a loss that leaves the training as it was, but evaluating it changed "
            f"{', '.join(changed[:3])}{more} in place. Define probe_loss(batch) that returns the "
            "loss and changes nothing."
        )
