"""Put back what evaluating a loss changes outside its module: the state of the trainer."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_linf.errors import RestoreError
from lightning_linf.probe.saved_containers import MUTABLE, SavedContainer, are_same
from lightning_linf.probe.saved_tensors import SavedTensors
from lightning_linf.probe.stateful_objects import has_state, is_data_source, slots_of

_ATOMS = (int, float, complex, str, bytes, type(None), type)
_MOST_ENTRIES = 4096  # of a tensor that is copied at each evaluation


class TrainerState:
    """The state of the trainer that a module is attached to, if it is attached to one.

    It comprises the trainer itself, its loops and their progress, ``callback_metrics`` and its
    like, optimizers, learning rate schedulers, callbacks and datamodule: every attribute, and what
    can be reached from it through containers and plain objects. Of data sets, loaders and samplers
    it comprises the attributes, not what these hold.

    Args:
        module: Any module.
        held: Optimizers and schedulers that the module itself holds; their state is kept also
            without a trainer.
        is_wrapped: A wrapper moves parameters and their gradients to other memory in a forward
            pass, so it is not told from versions whether these have changed.
        keeps_parameters: The caller watches parameters itself, and puts them back.
    """

    def __init__(
        self,
        module: nn.Module,
        held: Sequence[Optimizer | LRScheduler] = (),
        *,
        is_wrapped: bool = False,
        keeps_parameters: bool = False,
    ) -> None:
        self._watches_gradients = not is_wrapped
        self._watches_parameters = not (is_wrapped or keeps_parameters)
        self._containers: list[Any] = []
        self._slots: list[tuple[Any, str]] = []
        self._small: list[tuple[str, Tensor]] = []
        self._large: list[tuple[str, Tensor]] = []
        trainer: Any = getattr(module, "_trainer", None)
        is_lightnings = getattr(trainer, "fit_loop", None) is not None
        parts = [*(_parts(trainer) if is_lightnings else ()), *held]
        self._parts = {id(part): part for part in parts}
        self._optimizers = [p for p in self._parts.values() if isinstance(p, Optimizer)]
        seen = {id(module)}  # ModuleState puts it back
        for optimizer in self._optimizers:  # _OptimizerState watches all of these at once
            seen |= {id(optimizer.state), *(id(p) for p in _parameters(optimizer))}
        for part in parts:
            self._walk(type(part).__name__, part, seen)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put back what one evaluation of the loss changes.

        Put back are learning rates and all else in ``param_groups``, attributes, containers and
        ``.grad``, and the values of tensors of up to 4,096 entries. Larger tensors, parameters and
        moments are not copied: their version counters tell whether they were changed. What happens
        between evaluations, such as a signal that asks the training to stop, remains.

        Raises:
            RestoreError: On leaving, if one of these was changed in place.
        """
        containers = [SavedContainer(container) for container in self._containers]
        slots = [(value, name, getattr(value, name)) for value, name in self._slots]
        small = SavedTensors()  # copied, for BatchNorm changes its statistics without a new version
        small.add(self._small)
        versions = [t._version for _, t in self._large]
        optimizers = [
            _OptimizerState(each, self._watches_parameters, self._watches_gradients)
            for each in self._optimizers
        ]
        try:
            yield
        finally:
            for container in containers:
                container.restore()
            for value, name, item in slots:
                object.__setattr__(value, name, item)
            changed = small.restore()
            changed += [
                path
                for (path, tensor), version in zip(self._large, versions, strict=True)
                if tensor._version != version
            ]
            for optimizer in optimizers:
                changed += optimizer.restore()
            if changed:
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise RestoreError(
                    "probe: expected a loss that leaves the training as it was, but evaluating it "
                    f"changed {', '.join(changed[:3])}{more} in place. Define probe_loss(batch) "
                    "that returns the loss and changes nothing."
                )

    def _walk(self, name: str, part: Any, seen: set[int]) -> None:
        pending: list[tuple[str, Any]] = [(name, part)]
        while pending:
            path, value = pending.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, MUTABLE):
                self._containers.append(value)
            if isinstance(value, Tensor):
                if value.numel() <= _MOST_ENTRIES:
                    self._small.append((path, value))
                elif not value.is_inference():
                    self._large.append((path, value))
            elif isinstance(value, dict):
                items = dict.items(value)
            elif isinstance(value, (list, tuple, set, frozenset, deque)):
                items = enumerate(value)
            elif is_data_source(value):
                self._containers.append(value.__dict__)  # but not the samples
                names = ("dataset", "batch_sampler", "sampler")
                items = ((name, value.__dict__.get(name)) for name in names)
            elif self._is_walked(value):
                slots = dict(slots_of(value))
                self._slots += [(value, name) for name in slots]
                items = slots.items()
                if hasattr(value, "__dict__"):
                    pending.append((path, value.__dict__))
            pending += [(f"{path}.{k}", item) for k, item in items if not isinstance(item, _ATOMS)]

    def _is_walked(self, value: Any) -> bool:
        if id(value) in self._parts or isinstance(value, (Optimizer, LRScheduler)):
            return True
        return ".loops." in type(value).__module__ or has_state(value)


class _OptimizerState:
    """Parameters, gradients, moments and counts of an optimizer, before an evaluation."""

    def __init__(
        self, optimizer: Optimizer, watches_parameters: bool, watches_gradients: bool
    ) -> None:
        self._optimizer = optimizer
        self._watches_parameters = watches_parameters
        self._watches_gradients = watches_gradients
        self._params = _parameters(optimizer)
        self._gradients = [p.grad for p in self._params]
        self._values = self._present()
        self._versions = _versions(self._values)

    def restore(self) -> list[str]:
        """Put back gradients that were replaced; tell whether anything else has changed."""
        for p, gradient in zip(self._params, self._gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        present = self._present()
        if are_same(present, self._values) and _versions(present) == self._versions:
            return []
        return [f"what {type(self._optimizer).__name__} steps or keeps"]

    def _present(self) -> list[Any]:
        states = [s for s in self._optimizer.state.values() if isinstance(s, dict)]
        parameters = self._params if self._watches_parameters else []
        gradients = self._gradients if self._watches_gradients else []
        return [*parameters, *gradients, *(value for s in states for value in s.values())]


def _parts(trainer: Any) -> list[Any]:
    return [
        *trainer.optimizers,
        *trainer.lr_scheduler_configs,
        *(c for c in trainer.callbacks if not _is_ours(c)),
        getattr(trainer, "datamodule", None),
        trainer.train_dataloader,
        trainer.fit_loop,
        trainer._logger_connector,  # holds callback_metrics
        trainer,
    ]


def _versions(values: list[Any]) -> list[int]:
    return [v._version for v in values if isinstance(v, Tensor) and not v.is_inference()]


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_ours(callback: Any) -> bool:
    """Whether it is a monitor of ours, whose long history would be walked for nothing."""
    return type(callback).__module__.startswith("lightning_linf.")
