"""Run a module's own code and leave no trace of it."""

import io
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.quasirandom import SobolEngine
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_linf.errors import ProbeError, RestoreError
from lightning_linf.lightning_packages import is_either
from lightning_linf.probe.saved_tensors import TensorValues

# Objects of these packages are machinery or data that is reachable from a module but not part of
# its state, except for modules, tensors and generators.
_NOT_STATE = {
    *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "numpy", "tokenizers"),
    *("wandb", "mlflow", "comet_ml", "neptune", "clearml", "tensorboardX"),
    *("datasets", "pandas", "polars", "pyarrow", "PIL", "scipy", "sklearn"),
    *(sys.stdlib_module_names - {"collections"}),
}
_STATE = (nn.Module, SobolEngine, SimpleNamespace)  # whatever their package
_THREADING = {"_thread", "threading", "queue", "asyncio", "multiprocessing"}
_ATOMS = (int, float, complex, str, bytes, type(None), type, ModuleType)
_MUTABLE = (dict, list, set, deque)

Restore = Callable[[], object]


class Isolation:
    """What :func:`untouched` captured of a module."""

    def __init__(self, module: nn.Module, *, refuse_iterators: bool) -> None:
        self.slots: list[tuple[Any, Any, Tensor]] = []
        """Container, key and tensor of every place that holds a parameter or a buffer."""
        self.training_parts: list[Optimizer | LRScheduler] = []
        """Optimizers and schedules that it holds, which change what is outside the module."""
        self._module = module
        self._random = capture_random()
        # Containers first: with the module's own tensors back in its tables, a failure further
        # down cannot train copies.
        self._containers: list[tuple[str, Restore]] = []
        self._values: list[tuple[str, Restore]] = []
        self._tensors = TensorValues()
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
        seen: set[int] = set()
        pending: list[tuple[str, Any]] = [(type(self._module).__name__, self._module)]
        tensors: list[tuple[str, Any, Any, Tensor]] = []
        own: set[int] = set()  # parameters and buffers: replaced, so their values need no capture
        while pending:
            path, value = pending.pop()
            if isinstance(value, _ATOMS) or id(value) in seen:
                continue
            seen.add(id(value))
            try:
                if isinstance(value, torch.jit.ScriptModule):
                    raise ProbeError("scripted modules hold their state outside Python")
                if isinstance(value, _MUTABLE):
                    self._containers.append((path, _capture_container(value)))
                if isinstance(value, (dict, list)):
                    items = list(dict.items(value) if isinstance(value, dict) else enumerate(value))
                    tensors += [(path, value, k, v) for k, v in items if isinstance(v, Tensor)]
                    pending += [(f"{path}.{k}", v) for k, v in items if not isinstance(v, Tensor)]
                elif isinstance(value, (set, deque, tuple, frozenset)):
                    for item in value:
                        if isinstance(item, Tensor):
                            tensors.append((path, None, None, item))
                        else:
                            pending.append((path, item))
                elif _is_generator(value):
                    self._values.append((path, _capture_generator(value)))
                elif isinstance(value, np.ndarray):
                    if value.flags.writeable and not isinstance(value, np.memmap):
                        self._values.append((path, partial(np.copyto, value, value.copy())))
                elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
                    if refuse_iterators:
                        raise ProbeError("the position of an iterator cannot be put back")
                elif isinstance(value, nn.Module):
                    own.update(id(buffer) for buffer in value._buffers.values())
                elif isinstance(value, (Optimizer, LRScheduler)):
                    self.training_parts.append(value)
                elif is_source(value):
                    self._containers.append((path, _capture_container(value.__dict__)))
                if isinstance(value, _MUTABLE) or has_state(value):
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
            is_own = isinstance(tensor, nn.Parameter) or id(tensor) in own
            if is_own and container is not None:
                self.slots.append((container, key, tensor))
            elif id(tensor) not in values:
                values[id(tensor)] = f"{path}.{key}", tensor
        self._tensors.add(values.values())


@contextmanager
def untouched(module: nn.Module, *, refuse_iterators: bool = False) -> Iterator[Isolation]:
    """Restore everything that running ``module`` may change, also after an exception.

    That is: every attribute reachable from the module through submodules, containers and plain
    objects (training flags, hooks, counters, lists, torchmetrics states, generators), the places
    that hold parameters and buffers, and the random state of torch on every device, Python and
    NumPy. While it is open, ``self.log`` and ``self.log_dict`` do nothing and the trainer's loggers
    are dummies.

    The *values* of parameters and buffers are not copied: whoever runs the module puts other
    tensors into ``slots``. Left alone are what data sets hold, loggers, objects that hold locks or
    threads, read-only and memory-mapped arrays, and all that is outside the module (globals,
    closures, files); of the trainer see :class:`~lightning_linf.probe.trainer_state.TrainerState`.

    Args:
        module: Any module; a LightningModule may be attached to a trainer.
        refuse_iterators: Refuse a module that holds an iterator.

    Raises:
        ProbeError: On entering, if something reachable cannot be put back.
        RestoreError: On leaving, if something could not be put back.
    """
    trainer = module._trainer if is_either(module, LightningModule) else None
    loggers = list(trainer.loggers) if is_either(trainer, Trainer) else []
    isolation = Isolation(module, refuse_iterators=refuse_iterators)
    try:
        isolation.rewind()
        if is_either(trainer, Trainer):
            trainer.loggers = [DummyLogger() for _ in loggers]
        yield isolation
    finally:
        if is_either(trainer, Trainer):
            trainer.loggers = loggers
        isolation.restore()


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``self.log``."""


def slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Give names and values of the ``__slots__`` of an object that are set."""
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def has_state(value: Any) -> bool:
    """Whether the attributes of an object are part of a module's state."""
    if isinstance(value, _STATE):
        return True
    if _has_threads(value) or is_machinery(value):
        return False
    return not isinstance(value, np.ndarray)


def is_source(value: Any) -> bool:
    """Whether an object gives samples: its attributes are state, what they hold is data."""
    return isinstance(value, (Dataset, DataLoader, Sampler)) and not _has_threads(value)


def is_machinery(value: Any) -> bool:
    """Whether an object is a data set, or of a package whose objects are no state."""
    if isinstance(value, (Dataset, DataLoader)) or is_either(value, LightningDataModule, Trainer):
        return True
    return _package(value) in _NOT_STATE and not isinstance(value, _STATE)


def _has_threads(value: Any) -> bool:
    """Whether another thread may be at work on an object, whose progress is not ours to undo."""
    attributes = getattr(value, "__dict__", {})
    return any(_package(attribute) in _THREADING for attribute in attributes.values())


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def capture_random() -> Restore:
    """Keep the random state of torch on every device, Python and NumPy; calling it puts it back."""
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # the global state is what modules draw from
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if has_cuda else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


def _capture_container(value: Any) -> Restore:
    # The methods of the base class: subclasses may forbid or extend them (transformers' outputs).
    kind: Any = next(k for k in (OrderedDict, *_MUTABLE) if isinstance(value, k))
    saved = list(kind.items(value)) if isinstance(value, dict) else list(kind.__iter__(value))

    def restore() -> None:
        kind.clear(value)
        if isinstance(value, dict):
            for key, item in saved:
                kind.__setitem__(value, key, item)
        elif isinstance(value, set):
            kind.update(value, saved)
        else:
            kind.extend(value, saved)

    return restore


def _is_generator(value: Any) -> bool:
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return isinstance(value, kinds) and not isinstance(value, random.SystemRandom)


def _capture_generator(value: Any) -> Restore:
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
