"""Run a module's own code, and put back everything that this changed in the module."""

import io
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_linf.errors import ProbeError, RestoreError
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.random_state import capture_generator, capture_random, is_generator
from lightning_linf.probe.saved_containers import MUTABLE, SavedContainer
from lightning_linf.probe.saved_tensors import SavedTensors
from lightning_linf.probe.stateful_objects import has_state, is_data_source, slots_of

_ATOMS = (int, float, complex, str, bytes, type(None), type, ModuleType)

Restore = Callable[[], object]


class ModuleState:
    """The state of a module as it was when this was made: what :func:`untouched` puts back."""

    def __init__(self, module: nn.Module, *, refuse_iterators: bool) -> None:
        self.places: list[tuple[Any, Any, Tensor]] = []
        """Container, key and tensor of every place that holds a parameter or a buffer."""
        self.training_parts: list[Optimizer | LRScheduler] = []
        """Optimizers and schedulers that it holds, which change what is outside the module."""
        self._module = module
        self._random = capture_random()
        # Containers first: with the module's own tensors back in its tables, a failure further
        # down cannot train copies.
        self._containers: list[tuple[str, Restore]] = []
        self._values: list[tuple[str, Restore]] = []
        self._tensors = SavedTensors()
        self._walk(refuse_iterators)

    def restore(self) -> None:
        """Put everything back, going on after failures.

        Raises:
            RestoreError: Naming what could not be put back.
        """
        failures = []
        for path, step in (*self._containers, *self._values, ("random state", self._random)):
            try:
                step()
            except Exception as error:
                failures.append(f"{path} ({type(error).__name__}: {error})")
        failures += self._tensors.restore()
        if failures:
            raise RestoreError(
                "probe: expected to put the module back as it was, but could not restore "
                f"{'; '.join(failures)}. Define probe_loss(batch) that does not change it."
            )

    def rewind(self) -> None:
        """Go back to the state on entering, with logging off, to run the module once more."""
        self.restore()
        for part in self._module.modules():
            if is_either(part, LightningModule):
                part.__dict__.update(log=_ignore, log_dict=_ignore)

    def _walk(self, refuse_iterators: bool) -> None:
        """Visit everything that the module refers to, and keep what is state."""
        pending: list[tuple[str, Any]] = [(type(self._module).__name__, self._module)]
        seen: set[int] = set()
        tensors: list[tuple[str, Any, Any, Tensor]] = []  # path, container, key, tensor
        buffers: set[int] = set()
        while pending:
            path, value = pending.pop()
            if isinstance(value, _ATOMS) or id(value) in seen:
                continue
            seen.add(id(value))
            try:
                self._keep(path, value, refuse_iterators)
                for key, item, container in _items(value):
                    if isinstance(item, Tensor):
                        tensors.append((f"{path}.{key}", container, key, item))
                    else:
                        pending.append((path if key is None else f"{path}.{key}", item))
                if isinstance(value, nn.Module):
                    buffers.update(id(buffer) for buffer in value._buffers.values())
                if isinstance(value, MUTABLE) or has_state(value):
                    if hasattr(value, "__dict__"):
                        pending.append((path, value.__dict__))
                    for name, item in slots_of(value):
                        step = partial(object.__setattr__, value, name, item)
                        self._containers.append((f"{path}.{name}", step))
                        is_tensor = isinstance(item, Tensor)
                        pending.append((f"{path}.{name}", [item] if is_tensor else item))
            except Exception as error:
                raise ProbeError(
                    f"probe: expected module state that can be put back, but {path} "
                    f"({type(value).__name__}) is not: {error}. Keep it out of the module's "
                    "attributes; an iterator may stay if the module defines probe_loss(batch)."
                ) from error
        values: dict[int, tuple[str, Tensor]] = {}
        for path, container, key, tensor in tensors:
            is_own = isinstance(tensor, nn.Parameter) or id(tensor) in buffers
            if is_own and container is not None:
                self.places.append((container, key, tensor))  # replaced: its values stay
            elif id(tensor) not in values:
                values[id(tensor)] = path, tensor
        self._tensors.add(values.values())

    def _keep(self, path: str, value: Any, refuse_iterators: bool) -> None:
        """Keep what an object itself holds, but for what it refers to."""
        if isinstance(value, torch.jit.ScriptModule):
            raise ProbeError("scripted modules hold their state outside Python")
        if isinstance(value, MUTABLE):
            self._containers.append((path, SavedContainer(value).restore))
        elif isinstance(value, (tuple, frozenset)):
            return
        elif is_generator(value):
            self._values.append((path, capture_generator(value)))
        elif isinstance(value, np.ndarray):
            if value.flags.writeable and not isinstance(value, np.memmap):
                self._values.append((path, partial(np.copyto, value, value.copy())))
        elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            if refuse_iterators:
                raise ProbeError("the position of an iterator cannot be put back")
        elif isinstance(value, (Optimizer, LRScheduler)):
            self.training_parts.append(value)
        elif is_data_source(value) and not isinstance(value, nn.Module):
            self._containers.append((path, SavedContainer(value.__dict__).restore))


@contextmanager
def untouched(module: nn.Module, *, refuse_iterators: bool = False) -> Iterator[ModuleState]:
    """Restore everything that running ``module`` may change, also after an exception.

    That is: every attribute that can be reached from the module through submodules, containers and
    plain objects (training flags, hooks, counters, lists, torchmetrics states, generators), the
    places that hold parameters and buffers, and the random state of torch on every device, Python
    and NumPy. While it is open, ``self.log`` and ``self.log_dict`` do nothing and the trainer's
    loggers are dummies.

    The *values* of parameters and buffers are not copied: whoever runs the module puts other
    tensors into ``places``. Left alone are what data sets hold, loggers, objects that hold locks or
    threads, read-only and memory-mapped arrays, and all that is outside the module (globals,
    closures, files); of the trainer see :class:`~lightning_linf.probe.trainer_state.TrainerState`.

    Args:
        module: Any module; a LightningModule may be attached to a trainer.
        refuse_iterators: Refuse a module that holds an iterator.

    Raises:
        ProbeError: On entering, if something in reach cannot be put back.
        RestoreError: On leaving, if something could not be put back.
    """
    trainer = module._trainer if is_either(module, LightningModule) else None
    loggers = list(trainer.loggers) if is_either(trainer, Trainer) else []
    state = ModuleState(module, refuse_iterators=refuse_iterators)
    try:
        state.rewind()
        if is_either(trainer, Trainer):
            trainer.loggers = [DummyLogger() for _ in loggers]
        yield state
    finally:
        if is_either(trainer, Trainer):
            trainer.loggers = loggers
        state.restore()


def _items(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Give key, item and the container in which the item can be replaced; None where it cannot."""
    if isinstance(value, dict):
        yield from ((key, item, value) for key, item in list(dict.items(value)))
    elif isinstance(value, list):
        yield from ((index, item, value) for index, item in enumerate(value))
    elif isinstance(value, (set, deque, tuple, frozenset)):
        yield from ((None, item, None) for item in value)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``self.log``."""
